"""The HTTP surface: routes parse, authorise, call one domain function and return."""
