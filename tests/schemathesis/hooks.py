"""What schemathesis can't know: pictures to send, and the name of an object that is there."""

import os
import pathlib
import re

import schemathesis
from hypothesis import strategies

PICTURES = sorted((pathlib.Path(__file__).parents[1] / "fixtures/golden/images").iterdir())

BUCKET = re.compile("[A-Za-z0-9._-]{1,255}")
KEY = re.compile("[^\\0]{1,1024}", re.DOTALL)

pictures = strategies.sampled_from([path.read_bytes() for path in PICTURES])
for media_type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(media_type, strategies.one_of(pictures, strategies.binary(max_size=4096)))


@schemathesis.hook
def map_body(context, body):
    # Half of the well-formed names are ones of the bucket, so that not every answer is a refusal.
    # What is malformed stays so: it is sent to be refused.
    bucket = body.get("bucket") if isinstance(body, dict) else None
    if isinstance(bucket, str) and BUCKET.fullmatch(bucket) and len(bucket) % 2 == 1:
        body = {**body, "bucket": os.environ["ROC4MLLM_API_BUCKET"]}
        key = body.get("key")
        if isinstance(key, str) and KEY.fullmatch(key) and len(key) % 2 == 1:
            body["key"] = "photo.jpg"
    return body
