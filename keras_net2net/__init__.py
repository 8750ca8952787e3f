"""Grow neural networks while they train: Net2Net for Keras 3."""

from keras_net2net import errors, rules, testing
from keras_net2net.errors import GrowthError
from keras_net2net.growth.clones import clone, clone_and_grow, net2deeper, net2wider
from keras_net2net.growth.freezing import unfreeze
from keras_net2net.growth.grow import grow, plan
from keras_net2net.growth.rates import Rewarm, Rewind
from keras_net2net.growth.report import GrowthReport
from keras_net2net.internals.version import __version__ as __version__
from keras_net2net.operations.deeper.deeper import Deeper
from keras_net2net.operations.deeper.pairs import DeeperPairs
from keras_net2net.operations.larger_kernel import LargerKernel
from keras_net2net.operations.narrower.narrower import Narrower
from keras_net2net.operations.new_classes import NewClasses
from keras_net2net.operations.wider.wider import Wider
from keras_net2net.planning.plan import Plan
from keras_net2net.training.plateau import GrowOnPlateau
from keras_net2net.training.resume.replay import replay, upgrade_weights
from keras_net2net.training.scheduler import GrowthScheduler

__all__ = [
    "Deeper",
    "DeeperPairs",
    "GrowOnPlateau",
    "GrowthError",
    "GrowthReport",
    "GrowthScheduler",
    "LargerKernel",
    "Narrower",
    "NewClasses",
    "Plan",
    "Rewarm",
    "Rewind",
    "Wider",
    "clone",
    "clone_and_grow",
    "errors",
    "grow",
    "net2deeper",
    "net2wider",
    "plan",
    "replay",
    "rules",
    "testing",
    "unfreeze",
    "upgrade_weights",
]
