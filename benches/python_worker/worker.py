"""A worker as somebody would write it in Python: the peer of the pipeline's benchmark.

Image events from Kafka, objects from S3 on 16 threads, preprocessing with Pillow and numpy, a score that costs
nothing, rows to Postgres in one statement a batch, outputs and offsets in one transaction a batch. While a batch is
written, the next one is being fetched.

It promises exactly-once outputs where nothing fails, and at-least-once rows. It has no retries, no limits, no dead
letters, no breaker and no hot switch.
"""

import argparse
import collections
import datetime
import json
import os
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_plus

import boto3
import psycopg
from botocore.config import Config
from confluent_kafka import Consumer, Producer, TopicPartition
from preprocess import pixel_values

FETCH_THREADS = 16
BATCH = 500
# Long enough to fill a batch under load, and short enough not to be felt without.
WAIT_S = 0.05
BINS = 10

UPSERT = """
INSERT INTO scores (id, bucket, object_key, etag, model, model_version, status, score, scores, distributions,
    text, scored_at, source_topic, source_partition, source_offset, source_item)
SELECT id, bucket, object_key, etag, 'python', 'python', 'scored', score, ARRAY[score], distributions, text, scored_at,
    source_topic, source_partition, source_offset, source_item
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::float8[], %s::jsonb[], %s::text[],
    %s::timestamptz[], %s::text[], %s::int[], %s::bigint[], %s::int[])
AS new (id, bucket, object_key, etag, score, distributions, text, scored_at, source_topic, source_partition,
    source_offset, source_item)
ON CONFLICT (id) DO NOTHING
"""


def read_items(message):
    """What an S3 event names: bucket, key and ETag of each object."""
    for index, record in enumerate(json.loads(message.value())["Records"]):
        s3 = record["s3"]
        yield index, s3["bucket"]["name"], unquote_plus(s3["object"]["key"]), s3["object"]["eTag"]


def score(values):
    """The score that costs nothing: an expectation over ten bins that one pixel decides on."""
    weight = min(abs(float(values[0, 0, 0])), 1.0)
    distribution = [weight] + [(1 - weight) / (BINS - 1)] * (BINS - 1)
    return sum(p * (1 + index) for index, p in enumerate(distribution)), distribution


def process(s3, message):
    """The rows of one record."""
    rows = []
    for item, bucket, key, etag in read_items(message):
        content = s3.get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')["Body"].read()
        value, distribution = score(pixel_values(content))
        row_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{bucket}/{key}/{etag}")
        now = datetime.datetime.now(datetime.timezone.utc)
        text = f"The score is {value:.4f}."
        position = (message.topic(), message.partition(), message.offset(), item)
        rows.append((row_id, bucket, key, etag, value, distribution, text, now, position))
    return rows


def write_rows(connection, rows):
    rows = sorted({row[0]: row for row in rows}.values(), key=lambda row: row[0])
    columns = list(zip(*((*row[:5], json.dumps([row[5]]), row[6], row[7], *row[8]) for row in rows)))
    with connection.transaction():
        connection.execute(UPSERT, [list(column) for column in columns])


def output(row):
    row_id, bucket, key, etag, value, distribution, text, now, (topic, partition, offset, item) = row
    return json.dumps({
        "v": 1,
        "id": str(row_id),
        "status": "scored",
        "bucket": bucket,
        "key": key,
        "etag": etag,
        "score": value,
        "scores": [value],
        "distributions": [distribution],
        "text": text,
        "model": "python",
        "model_version": "python",
        "error": None,
        "source": {"topic": topic, "partition": partition, "offset": offset, "item": item},
        "scored_at": now.isoformat(),
    }).encode()


def commit(producer, consumer, topic, rows, messages):
    """Outputs, and the offsets that cover them, in one transaction."""
    ends = {}
    for message in messages:
        ends[message.topic(), message.partition()] = message.offset() + 1
    producer.begin_transaction()
    for row in rows:
        producer.produce(topic, key=f"{row[1]}/{row[2]}", value=output(row))
    offsets = [TopicPartition(name, partition, offset) for (name, partition), offset in ends.items()]
    producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
    producer.commit_transaction()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("brokers", "group", "input", "output", "endpoint", "database"):
        arguments.add_argument(f"--{name}", required=True)
    arguments = arguments.parse_args()
    stopped = []
    for signalled in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signalled, lambda *_: stopped.append(True))
    consumer = Consumer({
        "bootstrap.servers": arguments.brokers,
        "group.id": arguments.group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
    })
    producer = Producer({
        "bootstrap.servers": arguments.brokers,
        "transactional.id": f"{arguments.group}-{os.getpid()}",
        "compression.type": "zstd",
        "linger.ms": 2,
    })
    producer.init_transactions()
    s3 = boto3.client(
        "s3",
        endpoint_url=arguments.endpoint,
        region_name="us-east-1",
        config=Config(max_pool_connections=FETCH_THREADS, s3={"addressing_style": "path"}),
    )
    connection = psycopg.connect(arguments.database, autocommit=True)
    consumer.subscribe([arguments.input])
    fetching = collections.deque()
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        while not stopped:
            # The next batch is fetched while the one before it is written.
            wait = WAIT_S if not fetching else 0.001
            messages = [message for message in consumer.consume(BATCH, timeout=wait) if message.error() is None]
            if messages:
                fetching.append((messages, [pool.submit(process, s3, message) for message in messages]))
            if fetching and (len(fetching) > 1 or not messages):
                messages, futures = fetching.popleft()
                rows = [row for future in futures for row in future.result()]
                write_rows(connection, rows)
                commit(producer, consumer, arguments.output, rows, messages)
    consumer.close()
    connection.close()


if __name__ == "__main__":
    main()
