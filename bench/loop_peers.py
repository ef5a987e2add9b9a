"""Other workers on Redis, each by its own library and settings for throughput: PEER worker | enqueue N | rtt N.

A job appends one byte to the file BENCH_DONE, or for `rtt` to the FIFO that its argument names; the same for all.
"""

import asyncio
import json
import os
import sys
import tempfile
import time

from loop_job import job

PEER, WHAT = sys.argv[1], sys.argv[2]
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 0
URL = os.environ["REDIS_URL"]


def run(put, *, is_async: bool) -> None:  # type: ignore[no-untyped-def]
    """Enqueue COUNT jobs, or one after another and print how long each took, in ms."""

    async def call(path: str) -> None:
        found = put(path)
        if is_async:
            await found

    async def main() -> None:
        if WHAT == "enqueue":
            for _ in range(COUNT):
                await call(os.environ["BENCH_DONE"])
            return
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "fifo")
            os.mkfifo(path)
            fd, times = os.open(path, os.O_RDWR), []
            for _ in range(COUNT + 10):
                begin = time.perf_counter()
                await call(path)
                os.read(fd, 1)
                times.append((time.perf_counter() - begin) * 1e3)
            print(json.dumps(times[10:]))

    asyncio.run(main())


def rq() -> None:
    import redis
    from rq import Queue, SimpleWorker

    connection = redis.Redis.from_url(URL)
    queue = Queue(connection=connection)
    if WHAT == "worker":
        SimpleWorker([queue], connection=connection).work()
    else:
        run(lambda path: queue.enqueue("loop_job.job", path), is_async=False)


def huey() -> None:
    from huey import RedisHuey

    app = RedisHuey("bench", url=URL, results=False)
    task = app.task()(job)
    if WHAT == "worker":
        app.create_consumer(workers=1, initial_delay=0.01, max_delay=0.05).run()
    else:
        run(task, is_async=False)


def dramatiq() -> None:
    import dramatiq as library
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=URL)
    library.set_broker(broker)
    actor = library.actor(job)
    if WHAT == "worker":
        worker = library.Worker(broker, worker_threads=8)
        worker.start()
        while True:
            time.sleep(60)
    else:
        run(actor.send, is_async=False)


def celery() -> None:
    from celery import Celery

    app = Celery("bench", broker=URL)
    app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)
    task = app.task(name="job")(job)
    if WHAT == "worker":
        app.worker_main(["worker", "--pool=solo", "--loglevel=ERROR", "--without-gossip", "--without-mingle"])
    else:
        run(task.delay, is_async=False)


def arq() -> None:
    from arq import create_pool
    from arq.connections import RedisSettings
    from arq.worker import Worker, func

    async def work(ctx: object, path: str) -> None:
        job(path)

    settings = RedisSettings.from_dsn(URL)
    if WHAT == "worker":
        asyncio.set_event_loop(asyncio.new_event_loop())
        Worker([func(work, name="work", keep_result=0)], redis_settings=settings, max_jobs=100, poll_delay=0.01).run()
    else:
        pool: list[object] = []

        async def put(path: str) -> None:
            if not pool:
                pool.append(await create_pool(settings))
            await pool[0].enqueue_job("work", path)  # type: ignore[attr-defined]

        run(put, is_async=True)


def taskiq() -> None:
    from taskiq.api import run_receiver_task
    from taskiq_redis import ListQueueBroker

    broker = ListQueueBroker(URL)

    @broker.task(task_name="job")
    async def work(path: str) -> None:
        job(path)

    async def serve() -> None:
        await broker.startup()
        await run_receiver_task(broker, max_async_tasks=100)

    if WHAT == "worker":
        broker.is_worker_process = True
        asyncio.run(serve())
    else:
        run(work.kiq, is_async=True)


def faststream() -> None:
    from faststream import FastStream
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(URL, logger=None)
    app = FastStream(broker)

    @broker.subscriber(
        stream=StreamSub("jobs", group="worker", consumer=str(os.getpid()), last_id=">", max_records=100)
    )
    async def work(path: str) -> None:
        job(path)

    if WHAT == "worker":
        asyncio.run(app.run())
        return
    import redis

    with redis.Redis.from_url(URL) as r:
        try:
            r.xgroup_create("jobs", "worker", id="0", mkstream=True)
        except redis.ResponseError:
            pass

    async def put(path: str) -> None:
        if not started:
            await broker.connect()
            started.append(True)
        await broker.publish(path, stream="jobs")

    started: list[bool] = []
    run(put, is_async=True)


def streaq() -> None:
    from streaq import Worker

    worker = Worker(redis_url=URL, concurrency=100)

    @worker.task()
    async def work(path: str) -> None:
        job(path)

    if WHAT == "worker":
        worker.run_sync()
        return

    async def put(path: str) -> None:
        if not started:
            started.append(await worker.__aenter__())
        await work.enqueue(path)

    started: list[object] = []
    run(put, is_async=True)


globals()[PEER]()
