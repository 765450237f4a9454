"""Times preprocessing, a line of standard input at a time: the number of runs. Answers with processor seconds of each.

The file to read is the only argument; "decode" times Pillow's decoder alone.
"""

import io
import sys
import time

from PIL import Image
from preprocess import pixel_values


def decode(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def main():
    with open(sys.argv[1], "rb") as file:
        content = file.read()
    work = {"preprocess": pixel_values, "decode": decode}
    for line in sys.stdin:
        what, runs = line.split()
        times = []
        for _ in range(int(runs)):
            start = time.thread_time()
            work[what](content)
            times.append(time.thread_time() - start)
        print(*times, flush=True)


if __name__ == "__main__":
    main()
