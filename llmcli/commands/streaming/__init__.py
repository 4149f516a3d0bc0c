"""Printing generated text while it comes: one text, several samples, or the text of a server."""
