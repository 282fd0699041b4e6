"""How a supernet gets its weights."""
