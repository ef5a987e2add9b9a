"""A worker of another type that wants nobody else to be served: it attacks what guards the replies of `t`, until it is ended."""

import time

from sandboxrun import worker

VICTIMS = ("1", "2")
KEYS = [key for id_ in VICTIMS for key in (f"req:t:req:x {id_}:h", f"t:req:x:fence:{id_}:f")]

pipe = worker.connect().pipeline(transaction=False)
print("begun", flush=True)
while True:
    for key in KEYS:
        pipe.delete(key)
        pipe.hset(key, "x", "1")
    pipe.execute(raise_on_error=False)
    time.sleep(0.0003)
