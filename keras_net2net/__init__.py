"""Grow neural networks while they train: Net2Net for Keras 3."""

from keras_net2net import testing
from keras_net2net.callbacks import GrowthScheduler
from keras_net2net.clones import clone, clone_and_grow, net2deeper, net2wider
from keras_net2net.errors import (
    CheckError,
    CodeError,
    ConflictError,
    FixedWidthError,
    GrowthError,
    LogError,
    NotIdentityError,
    SizeError,
    UnknownLayerError,
    VerificationError,
)
from keras_net2net.facts import follows, makes, reads
from keras_net2net.freezing import unfreeze
from keras_net2net.growth import grow, plan
from keras_net2net.operations.deeper import Deeper
from keras_net2net.operations.larger_kernel import LargerKernel
from keras_net2net.operations.narrower import Narrower
from keras_net2net.operations.new_classes import NewClasses
from keras_net2net.operations.pairs import DeeperPairs
from keras_net2net.operations.wider import Wider
from keras_net2net.plan import Plan
from keras_net2net.plateau import GrowOnPlateau
from keras_net2net.rates import Rewarm, Rewind
from keras_net2net.replaying import replay, upgrade_weights
from keras_net2net.report import GrowthReport
from keras_net2net.rule_call import RuleCall
from keras_net2net.rules.registry import register_rule

__version__ = "0.1.0"

__all__ = [
    "CheckError",
    "CodeError",
    "ConflictError",
    "Deeper",
    "DeeperPairs",
    "FixedWidthError",
    "GrowOnPlateau",
    "GrowthError",
    "GrowthReport",
    "GrowthScheduler",
    "LargerKernel",
    "LogError",
    "Narrower",
    "NewClasses",
    "NotIdentityError",
    "Plan",
    "Rewarm",
    "Rewind",
    "RuleCall",
    "SizeError",
    "UnknownLayerError",
    "VerificationError",
    "Wider",
    "clone",
    "clone_and_grow",
    "follows",
    "grow",
    "makes",
    "net2deeper",
    "net2wider",
    "plan",
    "reads",
    "register_rule",
    "replay",
    "testing",
    "unfreeze",
    "upgrade_weights",
]
