"""A growth as a value, and drawing one up."""
