"""The operations of `keras.ops` between symbolic tensors, in files named as Keras's own are."""
