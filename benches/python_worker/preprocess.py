"""Preprocessing as the reference does it: Pillow, and the steps of Transformers' CLIPImageProcessor in numpy."""

import io

import numpy as np
from PIL import Image

EDGE = 448
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
BACKGROUND = tuple(int(mean * 255) for mean in (0.48145466, 0.4578275, 0.40821073))


def expand_to_square(image):
    """The image centred on a square of the mean colour (the reference's `expand2square`)."""
    width, height = image.size
    if width == height:
        return image
    edge = max(width, height)
    square = Image.new("RGB", (edge, edge), BACKGROUND)
    square.paste(image, ((edge - width) // 2, (edge - height) // 2))
    return square


def pixel_values(content):
    """Pixel values `[3, EDGE, EDGE]`, float32, of an image file's bytes."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = expand_to_square(image).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
    values = np.asarray(image).astype(np.float64) * (1 / 255)
    values = (values.astype(np.float32) - MEAN) / STD
    return np.ascontiguousarray(values.transpose(2, 0, 1))
