"""What goes beyond a patch of Django's core."""
