// deno run … worker.ts KEY REDIS_URL: answers requestLimit requests, one round trip each.
import { fields, Redis, type Reply } from "./redis.ts";

const [key, url] = Deno.args;
const type = key.split(":")[0];
const stream = `${type}:req:x`;
const group = "worker";
const read = ["XREADGROUP", "GROUP", group, key, "COUNT", "1", "BLOCK", "2000", "STREAMS", stream, ">"];
// A group that is there already is an error that changes nothing.
const first = [["HGETALL", `${type}:h`], ["HGETALL", key], ["XGROUP", "CREATE", stream, group, "0", "MKSTREAM"]];
const [redis, [shared, own]] = await Redis.connect(url, first);
const limit = Number({ ...fields(shared), ...fields(own) }.requestLimit || 0);

for (let done = 0; !limit || done < limit;) {
  const [pid, found] = await redis.send([["HGET", key, "pid"], read]);
  if (done && pid !== String(Deno.pid)) break; // at the first request, the runner may not have set it yet
  if (!found) continue;
  const [[, [[xid, flat]]]] = found as unknown as [[string, [[string, Reply]]]];
  const request = fields(flat);
  const received = new Date().toISOString();
  const data = JSON.parse(request.data);
  const completed = new Date().toISOString();
  const res = JSON.stringify({ ref: request.ref, source: type, code: 200, completed, text: data.text });
  const replies = await redis.send([
    ["MULTI"],
    ["LPUSH", `res:${request.ref}`, res],
    ["EXPIRE", `res:${request.ref}`, "8"],
    ["XADD", `${type}:res:x`, "*", "xid", xid, "ref", request.ref, "type", type, "code", "200"],
    ["HSET", `req:${request.ref}:h`, `${type}Trace`, JSON.stringify({ received, completed, res })],
    ["EXPIRE", `req:${request.ref}:h`, "120"],
    ["XACK", stream, group, xid],
    ["EXEC"],
  ]);
  const failed = replies.find((reply) => reply instanceof Error);
  if (failed) throw failed;
  done++;
}
redis.close();
