"""Preprocessing layers for images: most keep the channels apart, some mix colours."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_net2net.rules.kinds import named, with_space
from keras_net2net.widths.expressions import Axes, is_axes
from keras_net2net.widths.registry import Refusal, refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall

PIXELS = "moves pixels along this axis"


# What these draw at random is drawn for an image, and is the same for all its channels.
ALIKE = """
    CenterCrop ContrastLimitedAdaptiveHistogramEqualization RandomBrightness RandomContrast
    RandomCrop RandomFlip RandomGaussianBlur RandomInvert RandomPerspective RandomPosterization
    RandomRotation RandomSharpness RandomShear RandomTranslation RandomZoom Resizing Solarization
"""
# These combine the three colours.
MIXING = """
    AugMix RandAugment RandomColorDegeneration RandomColorJitter RandomGrayscale RandomHue
    RandomSaturation
"""


@register_rule(*named(ALIKE, layers))
def image_layer(call: RuleCall, x: Any, *args: Any, **kwargs: Any) -> Axes | list[Axes]:
    """Passes channels through: all channels of an image are treated alike, each alone."""
    if not is_axes(x):
        return Refusal("takes images together with their labels")(call, x)
    if len(x) != 4:
        return Refusal("takes one image, without a batch")(call, x)
    return with_space(call, x, PIXELS)


@register_rule(*named("AutoContrast", layers))
def auto_contrast(call: RuleCall, x: Any, *args: Any, **kwargs: Any) -> Axes | list[Axes]:
    """Passes channels through where they are last: each is stretched alone."""
    if call.layer.data_format == "channels_first":
        return Refusal("stretches contrast over axes of which the channels are one")(call, x)
    return image_layer(call, x)


@register_rule(*named("RandomErasing", layers))
def random_erasing(call: RuleCall, x: Any, *args: Any, **kwargs: Any) -> Axes | list[Axes]:
    """Passes channels through where a constant is filled in; random pixels fix them."""
    if call.layer.fill_value is None:
        return Refusal("fills in random pixels, other ones in each channel")(call, x)
    return image_layer(call, x)


refuse("mixes the three colours", *named(MIXING, layers))
refuse(
    "displaces pixels at random, which can't be compared", *named("RandomElasticTransform", layers)
)
refuse("returns its symbolic input, so that it can't be in a graph", *named("Equalization", layers))
refuse("mixes images of a batch together with their labels", *named("CutMix MixUp", layers))
refuse("works on boxes, not on units", *named("MaxNumBoundingBoxes", layers))
