"""All that inserts layers: identities, residual blocks, factors, and pairs."""
