"""Printing text as it is generated: one text, several samples, or the text of a server."""
