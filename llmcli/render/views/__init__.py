"""How the reports of the views are shown."""
