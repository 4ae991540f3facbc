"""What the black-box tests share: server processes, a client of one key, and checks of the error format."""
