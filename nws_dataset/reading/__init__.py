"""Reading a zoo from a folder or the Hub."""
