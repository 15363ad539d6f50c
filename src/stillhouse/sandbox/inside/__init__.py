"""What runs inside sandboxes: standard library only, and nothing of the package around it."""
