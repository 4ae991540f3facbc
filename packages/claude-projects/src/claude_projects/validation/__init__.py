"""``claude-projects validate``: whether a deployment keeps its promises, found out from outside."""
