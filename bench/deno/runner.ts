// deno run … runner.ts TYPE ID DENO REDIS_URL: reads the hash, runs its script confined by Deno's permissions, keeps `pid`.
import { fields, Redis } from "./redis.ts";

const [type, id, deno, url] = Deno.args;
const key = `${type}:${id}:h`;
const [redis, [shared, own]] = await Redis.connect(url, [["HGETALL", `${type}:h`], ["HGETALL", key]]);
const hash = { ...fields(shared), ...fields(own) };
const { host } = new URL(url);
const child = new Deno.Command(deno, {
  args: ["run", "--quiet", "--no-prompt", "--cached-only", "--no-config", "--no-lock", `--allow-net=${host}`, hash.url, key, url],
  stdin: "inherit",
  stdout: "inherit",
  stderr: "inherit",
}).spawn();
await redis.send([["HSET", key, "pid", String(child.pid)]]);
const status = await child.status;
await redis.send([["HDEL", key, "pid"]]);
redis.close();
Deno.exit(status.code);
