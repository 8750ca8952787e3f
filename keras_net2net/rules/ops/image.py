"""Operations of `keras.ops.image`, as in `keras/src/ops/image.py`."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_net2net.rules.kinds import channel_axis, named, tensors_in, with_space
from keras_net2net.widths.expressions import Axes, Fixed, product
from keras_net2net.widths.registry import Refusal, refuse, register_rule
from keras_net2net.widths.rule_call import RuleCall

IMAGES = ops.image
PIXELS = "moves pixels along this axis"


@register_rule(
    *named(
        "affine_transform crop_images gaussian_blur pad_images perspective_transform resize",
        ops.image,
    )
)
def geometry(call: RuleCall, images: Axes, *args: Any, **kwargs: Any) -> Axes:
    """Passes channels through."""
    for given in tensors_in((*args, *kwargs.values())):
        call.fix(given, "moves pixels by these numbers")
    if len(images) != 4 or len(call.output_shapes[0]) != 4:
        return Refusal("takes one image, without a batch")(call, images)[0]
    return with_space(call, images, PIXELS)


@register_rule(*named("extract_patches", IMAGES))
def extract_patches(call: RuleCall, images: Axes) -> Axes:
    """Multiplies the places of a patch by the channels."""
    size = call.layer.size
    places = math.prod(size) if isinstance(size, (tuple, list)) else size ** (len(images) - 2)
    channels = product([Fixed(places), images[channel_axis(call, len(images))]])
    return with_space(call, images, "cuts patches along this axis", channels)


@register_rule(*named("sobel_edges", IMAGES))
def sobel_edges(call: RuleCall, images: Axes) -> Axes:
    """Passes channels through; the two directions lie on a new axis."""
    shape = call.output_shapes[0]
    if len(images) != 4 or len(shape) != 5:
        return Refusal("takes one image, without a batch")(call, images)[0]
    at = channel_axis(call, 4)
    call.fix([axis for i, axis in enumerate(images) if i not in (0, at)], PIXELS)
    return (*images, Fixed(2))


refuse("mixes the three colours", *named("hsv_to_rgb rgb_to_grayscale rgb_to_hsv", IMAGES))
refuse("looks up places in all axes", *named("map_coordinates", IMAGES))
refuse("displaces pixels at random, which can't be compared", *named("elastic_transform", IMAGES))
refuse("is given the size of all its output's axes", *named("scale_and_translate", IMAGES))
refuse("compares all elements in one number", *named("ssim", IMAGES))
