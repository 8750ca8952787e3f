"""When to grow inside of `fit`."""
