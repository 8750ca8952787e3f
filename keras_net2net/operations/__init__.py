"""What to do to a model: the operations that `grow`, `plan` and the callbacks take."""
