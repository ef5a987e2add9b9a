"""Coroutines, tasks, event loops and threads. A worker that is not async runs a coroutine by asyncio.run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time

from rows import ANSWERED, ASYNC, FAILED, OK, PLAIN, THREADS, add, row

from sandboxrun import worker

ONLY_ASYNC = {"modes": (ASYNC,), "reason": "it is about the worker's own event loop"}
NO_LOOP = {"modes": (PLAIN, THREADS), "reason": "a coroutine runs in a loop already"}
VARIABLE = contextvars.ContextVar("VARIABLE")


@row()
async def await_a_cancelled_task(request):
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


@row()
async def await_a_cancelled_future(request):
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@row()
async def cancel_itself_and_wait(request):
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


@row(ANSWERED)
async def cancel_itself_and_return(request):
    asyncio.current_task().cancel()
    return {"ok": True}


@row(OK)
async def cancel_itself_and_swallow_it(request):
    asyncio.current_task().cancel()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return {"ok": True}


@row(**ONLY_ASYNC)
async def cancel_all_tasks(request):
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(60)


@row(OK, **ONLY_ASYNC)
async def cancel_all_other_tasks(request):
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.01)


@row(OK, **ONLY_ASYNC)
async def stop_the_loop(request):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)


@row(OK, **ONLY_ASYNC)
async def stop_the_loop_ten_times(request):
    for _ in range(10):
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)


@row(**ONLY_ASYNC)
async def close_the_loop(request):
    asyncio.get_running_loop().close()


@row(OK, **ONLY_ASYNC)
async def a_callback_that_exits(request):
    asyncio.get_running_loop().call_soon(exit, 3)
    await asyncio.sleep(0.01)


@row(OK, **ONLY_ASYNC)
async def an_exception_handler_that_raises(request):
    loop = asyncio.get_running_loop()

    def handler(loop, context):
        raise SystemExit(4)

    loop.set_exception_handler(handler)
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)
    loop.set_exception_handler(None)


@row(**ONLY_ASYNC)
async def run_a_loop_in_the_loop(request):
    coroutine = asyncio.sleep(0)
    try:
        asyncio.run(coroutine)
    finally:
        coroutine.close()


for kind in (SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, ValueError):

    async def fails(kind=kind):
        await asyncio.sleep(0)
        raise kind("in a task")

    async def left(request, fails=fails):
        KEPT.append(asyncio.ensure_future(fails()))
        await asyncio.sleep(0.01)
        return {"ok": True}

    async def awaited(request, fails=fails):
        await asyncio.ensure_future(fails())

    async def gathered(request, fails=fails):
        await asyncio.gather(fails(), asyncio.sleep(0.01))

    async def grouped(request, fails=fails):
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(asyncio.sleep(0.01))

    add(f"leave a task that raises {kind.__name__}", left, OK, **ONLY_ASYNC)
    add(f"await a task that raises {kind.__name__}", awaited)
    add(f"gather a coroutine that raises {kind.__name__}", gathered)
    add(f"a TaskGroup with {kind.__name__}", grouped, ANSWERED)
KEPT: list[asyncio.Future] = []


@row()
async def time_out(request):
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)


@row()
async def wait_for_too_long(request):
    await asyncio.wait_for(asyncio.sleep(60), 0.01)


@row()
async def wait_for_an_event_that_is_cancelled(request):
    event = asyncio.Event()
    task = asyncio.ensure_future(event.wait())
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


@row(OK)
async def shield_a_task(request):
    try:
        await asyncio.wait_for(asyncio.shield(asyncio.sleep(0.05)), 0.001)
    except TimeoutError:
        return {"ok": True}


@row()
async def StopIteration_in_a_coroutine(request):
    raise StopIteration("x")


@row()
async def StopAsyncIteration_in_a_coroutine(request):
    raise StopAsyncIteration("x")


@row()
async def await_something_else(request):
    await 3


@row()
async def await_a_coroutine_twice(request):
    coroutine = asyncio.sleep(0)
    await coroutine
    await coroutine


@row(OK)
async def an_async_generator_left_half_way(request):
    async def numbers():
        try:
            for n in range(10):
                yield n
        finally:
            await asyncio.sleep(0)

    async for n in numbers():
        return {"n": n}


@row(OK)
async def to_thread(request):
    return {"n": await asyncio.to_thread(lambda: 3)}


@row()
async def to_thread_that_exits(request):
    await asyncio.to_thread(exit, 3)


@row(OK)
async def a_context_variable(request):
    VARIABLE.set(request.ref)
    await asyncio.sleep(0)
    return {"same": VARIABLE.get() == request.ref}


@row(OK, **ONLY_ASYNC)
async def block_the_loop(request):
    time.sleep(0.1)


@row(OK)
def a_coroutine_that_is_never_awaited(request):
    asyncio.sleep(0)


@row()
def return_a_coroutine_that_raises(request):
    async def fails():
        raise ValueError("never seen")

    return {"coroutine": fails()}


@row(OK, **NO_LOOP)
def a_loop_of_its_own(request):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@row(**NO_LOOP)
def a_loop_that_exits(request):
    async def exits():
        raise SystemExit(3)

    asyncio.run(exits())


@row()
def run_the_worker_once_more(request):
    worker.run()


@row(OK)
def run_the_worker_in_a_thread(request):
    thread = threading.Thread(target=worker.run)
    thread.start()
    thread.join()


@row(OK)
def register_another_handler(request):
    worker.handler("other")(lambda request: None)


@row(OK)
def a_thread_that_fails(request):
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


@row(OK)
def a_thread_that_exits(request):
    thread = threading.Thread(target=exit, args=(3,))
    thread.start()
    thread.join()


@row(OK)
def a_thread_that_is_left(request):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


@row(OK)
def a_thread_that_reports_progress(request):
    thread = threading.Thread(target=request.progress, args=("from a thread",))
    thread.start()
    thread.join()


@row(OK)
def a_thread_that_reports_after_the_reply(request):
    threading.Timer(0.05, request.progress, ("late",)).start()


@row(OK)
def a_thread_that_prints(request):
    thread = threading.Thread(target=print, args=("from a thread",))
    thread.start()
    thread.join()


@row(OK)
def an_excepthook_of_threads_that_raises(request):
    before, threading.excepthook = threading.excepthook, lambda args: 1 / 0
    try:
        a_thread_that_fails(request)
    finally:
        threading.excepthook = before


@row()
def a_pool_whose_work_exits(request):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(exit, 3).result()


@row(FAILED)
def a_pool_whose_work_is_cancelled(request):
    future = concurrent.futures.Future()
    future.cancel()
    future.result()


@row(FAILED)
def an_error_that_a_thread_throws_into_the_handler(request):
    import ctypes

    ident = threading.get_ident()
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    threading.Timer(0.02, lambda: throw(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))).start()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        time.sleep(0.001)


@row(FAILED)
def a_lock_that_is_not_held(request):
    threading.Lock().release()


@row(FAILED)
def a_lock_waited_for_too_long(request):
    lock = threading.Lock()
    lock.acquire()
    if not lock.acquire(timeout=0.01):
        raise TimeoutError("deadlock")


@row(FAILED)
def more_threads_than_the_limit(request):
    event, started = threading.Event(), []
    try:
        for _ in range(400):
            thread = threading.Thread(target=event.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        event.set()
        for thread in started:
            thread.join()
