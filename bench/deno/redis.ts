// The least that speaks to Redis: RESP2 over one TCP connection, commands of one write answered in order.

export type Reply = string | number | null | RedisError | Reply[];

export class RedisError extends Error {}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export class Redis {
  #conn: Deno.TcpConn;
  #bytes = new Uint8Array(65536);
  #begin = 0;
  #end = 0;

  private constructor(conn: Deno.TcpConn) {
    this.#conn = conn;
  }

  /** `url`: redis://[:PASSWORD@]HOST:PORT. The answer to AUTH comes with those of the first commands. */
  static async connect(url: string, first: string[][]): Promise<[Redis, Reply[]]> {
    const { hostname, port, password } = new URL(url);
    const conn = await Deno.connect({ hostname, port: Number(port) });
    conn.setNoDelay(true);
    const redis = new Redis(conn);
    const auth = password ? [["AUTH", password]] : [];
    return [redis, (await redis.send([...auth, ...first])).slice(auth.length)];
  }

  /** Commands in one write; their replies, errors among them. */
  async send(commands: string[][]): Promise<Reply[]> {
    let text = "";
    for (const command of commands) {
      text += `*${command.length}\r\n`;
      for (const word of command) text += `$${byteLength(word)}\r\n${word}\r\n`;
    }
    let bytes = encoder.encode(text);
    while (bytes.length) bytes = bytes.subarray(await this.#conn.write(bytes));
    const replies: Reply[] = [];
    for (const _ of commands) replies.push(await this.#reply());
    return replies;
  }

  close() {
    this.#conn.close();
  }

  async #fill() {
    if (this.#begin) {
      this.#bytes.copyWithin(0, this.#begin, this.#end);
      this.#end -= this.#begin;
      this.#begin = 0;
    }
    if (this.#end === this.#bytes.length) {
      const more = new Uint8Array(this.#bytes.length * 2);
      more.set(this.#bytes);
      this.#bytes = more;
    }
    const count = await this.#conn.read(this.#bytes.subarray(this.#end));
    if (count === null) throw new Error("Redis closed the connection");
    this.#end += count;
  }

  async #line(): Promise<string> {
    let from = 0;
    while (true) {
      const at = this.#bytes.subarray(0, this.#end).indexOf(13, this.#begin + from);
      if (at >= 0 && at + 1 < this.#end) {
        const line = decoder.decode(this.#bytes.subarray(this.#begin, at));
        this.#begin = at + 2;
        return line;
      }
      from = this.#end - this.#begin - (at >= 0 ? 1 : 0);
      await this.#fill();
    }
  }

  async #reply(): Promise<Reply> {
    const line = await this.#line();
    const rest = line.slice(1);
    switch (line[0]) {
      case "+":
        return rest;
      case "-":
        return new RedisError(rest);
      case ":":
        return Number(rest);
      case "$": {
        const length = Number(rest);
        if (length < 0) return null;
        while (this.#end - this.#begin < length + 2) await this.#fill();
        const text = decoder.decode(this.#bytes.subarray(this.#begin, this.#begin + length));
        this.#begin += length + 2;
        return text;
      }
      case "*": {
        if (rest === "-1") return null;
        const found: Reply[] = [];
        for (let n = Number(rest); n > 0; n--) found.push(await this.#reply());
        return found;
      }
    }
    throw new Error(`not RESP: ${line}`);
  }
}

/** A reply of HGETALL. */
export function fields(reply: Reply): Record<string, string> {
  const found: Record<string, string> = {};
  const flat = reply as string[];
  for (let n = 0; n < flat.length; n += 2) found[flat[n]] = flat[n + 1];
  return found;
}

function byteLength(word: string): number {
  for (let n = 0; n < word.length; n++) if (word.charCodeAt(n) > 127) return encoder.encode(word).length;
  return word.length;
}
