"""What the client's tests stand on: a real server, real processes, and a wire that can be cut."""
