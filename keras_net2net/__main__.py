"""`python -m keras_net2net`: growth during training, seen on real data."""

from keras_net2net.demo.main import main

if __name__ == "__main__":
    raise SystemExit(main())
