"""Popular packages as workers: for each, the script that uses it, and the grants that it needs.

record_packages.py locks and runs each, and writes docs/packages.md; tests/packages/test_popular.py does so with the SMALL ones.
A script does what people install the package for, as far as that needs nothing but this machine: `request.data` has the ports
of an HTTP server and the like.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = """\
# /// script
# requires-python = ">=3.11"
# dependencies = [{dependencies}]
# ///
from sandboxrun import worker
{imports}


@worker.handler
def handle(request):
    data = request.data
{body}


worker.run()
"""


@dataclass(frozen=True)
class Package:
    """`grants`: fields of the hash, in which {http} is the port of the HTTP server, and {free} one that nothing listens on."""

    requirement: str
    imports: str
    body: str
    expected: object
    grants: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()  # other requirements

    @property
    def script(self) -> str:
        dependencies = ", ".join(f'"{requirement}"' for requirement in (self.requirement, *self.also))
        body = "\n".join(f"    {line}" if line else "" for line in self.body.strip("\n").split("\n"))
        return HEAD.format(dependencies=dependencies, imports=self.imports, body=body)


HTTP = (("allowNet", "127.0.0.1:{http}"),)
GET = {"status": 200, "text": "hello"}

PACKAGES = (
    Package(
        "requests",
        "import requests",
        'got = requests.get(f"http://127.0.0.1:{data[\'http\']}/hello", timeout=10)\n'
        'return {"status": got.status_code, "text": got.text}',
        GET,
        HTTP,
    ),
    Package(
        "httpx",
        "import httpx",
        'got = httpx.get(f"http://127.0.0.1:{data[\'http\']}/hello", trust_env=False)\n'
        'return {"status": got.status_code, "text": got.text}',
        GET,
        HTTP,
    ),
    Package(
        "urllib3",
        "import urllib3",
        'got = urllib3.PoolManager().request("GET", f"http://127.0.0.1:{data[\'http\']}/hello")\n'
        'return {"status": got.status, "text": got.data.decode()}',
        GET,
        HTTP,
    ),
    Package(
        "aiohttp",
        "import asyncio\nimport aiohttp",
        "async def get():\n"
        "    async with aiohttp.ClientSession() as session:\n"
        "        async with session.get(f\"http://127.0.0.1:{data['http']}/hello\") as got:\n"
        '            return {"status": got.status, "text": await got.text()}\n'
        "return asyncio.run(get())",
        GET,
        HTTP,
    ),
    Package(
        "websockets",
        "import asyncio\nimport websockets",
        "async def talk():\n"
        "    async def echo(connection):\n"
        "        async for message in connection:\n"
        "            await connection.send(message)\n"
        "    async with websockets.serve(echo, '127.0.0.1', data['free']):\n"
        "        async with websockets.connect(f\"ws://127.0.0.1:{data['free']}\", proxy=None) as connection:\n"
        "            await connection.send('hello')\n"
        "            return {'text': await connection.recv()}\n"
        "return asyncio.run(talk())",
        {"text": "hello"},
        (("allowNet", "127.0.0.1:{free}"), ("allowListen", "127.0.0.1:{free}")),
    ),
    Package(
        "anyio",
        "import anyio",
        "async def fetch():\n"
        "    async with await anyio.connect_tcp('127.0.0.1', data['http']) as stream:\n"
        "        await stream.send(b'GET /hello HTTP/1.0\\r\\n\\r\\n')\n"
        "        return {'text': (await stream.receive()).split()[1].decode()}\n"
        "return anyio.run(fetch)",
        {"text": "200"},
        HTTP,
    ),
    Package(
        "trio",
        "import trio",
        "async def fetch():\n"
        "    stream = await trio.open_tcp_stream('127.0.0.1', data['http'])\n"
        "    await stream.send_all(b'GET /hello HTTP/1.0\\r\\n\\r\\n')\n"
        "    return {'text': (await stream.receive_some()).split()[1].decode()}\n"
        "return trio.run(fetch)",
        {"text": "200"},
        HTTP,
    ),
    Package(
        "fastapi",
        "import threading\nimport time\nimport urllib.request\nimport fastapi\nimport uvicorn",
        "app = fastapi.FastAPI()\n"
        "app.get('/')(lambda: {'text': 'hello'})\n"
        "server = uvicorn.Server(uvicorn.Config(app, host='127.0.0.1', port=data['free'], log_level='error'))\n"
        "thread = threading.Thread(target=server.run)\n"
        "thread.start()\n"
        "while not server.started:\n"
        "    time.sleep(0.01)\n"
        "text = urllib.request.urlopen(f\"http://127.0.0.1:{data['free']}/\").read().decode()\n"
        "server.should_exit = True\n"
        "thread.join()\n"
        "return {'text': text}",
        {"text": '{"text":"hello"}'},
        (("allowNet", "127.0.0.1:{free}"), ("allowListen", "127.0.0.1:{free}")),
        ("uvicorn",),
    ),
    Package(
        "aiogram",
        "import aiogram",
        "bot = aiogram.Bot('42:abcdefghijklmnopqrstuvwxyz012345678')\nreturn {'id': bot.id}",
        {"id": 42},
    ),
    Package(
        "python-telegram-bot",
        "import telegram",
        "return {'text': telegram.User(1, 'Ada', False).mention_html()}",
        {"text": '<a href="tg://user?id=1">Ada</a>'},
    ),
    Package(
        "slack-sdk",
        "from slack_sdk.models.blocks import SectionBlock",
        "return {'type': SectionBlock(text='hi').to_dict()['type']}",
        {"type": "section"},
    ),
    Package(
        "openai",
        "import openai",
        "client = openai.OpenAI(api_key='x', base_url=f\"http://127.0.0.1:{data['http']}/v1\", max_retries=0)\n"
        "try:\n"
        "    client.models.list()\n"
        "except openai.APIStatusError as error:\n"
        "    return {'status': error.status_code}",
        {"status": 404},
        HTTP,
    ),
    Package(
        "anthropic",
        "import anthropic",
        "client = anthropic.Anthropic(api_key='x', base_url=f\"http://127.0.0.1:{data['http']}\", max_retries=0)\n"
        "try:\n"
        "    client.models.list()\n"
        "except anthropic.APIStatusError as error:\n"
        "    return {'status': error.status_code}",
        {"status": 404},
        HTTP,
    ),
    Package(
        "boto3",
        "import boto3",
        "s3 = boto3.client('s3', region_name='eu-west-1', aws_access_key_id='a', aws_secret_access_key='b')\n"
        "return {'signed': 'X-Amz-Signature' in s3.generate_presigned_url('get_object', {'Bucket': 'b', 'Key': 'k'})\n"
        "    or 'Signature' in s3.generate_presigned_url('get_object', {'Bucket': 'b', 'Key': 'k'})}",
        {"signed": True},
    ),
    Package(
        "psycopg[binary]",
        "import psycopg",
        "try:\n"
        "    psycopg.connect(f\"host=127.0.0.1 port={data['free']} user=app password=x dbname=app connect_timeout=5\")\n"
        "except psycopg.OperationalError as error:\n"
        "    return {'refused': 'refused' in str(error), 'error': str(error)}",
        {"refused": True},
        (("allowNet", "127.0.0.1:{free}"),),
    ),
    Package(
        "SQLAlchemy",
        "import sqlalchemy",
        "engine = sqlalchemy.create_engine('sqlite:///test.db')\n"
        "with engine.begin() as connection:\n"
        "    connection.execute(sqlalchemy.text('create table if not exists t (n integer)'))\n"
        "    connection.execute(sqlalchemy.text('insert into t values (7)'))\n"
        "    return {'n': connection.execute(sqlalchemy.text('select max(n) from t')).scalar()}",
        {"n": 7},
    ),
    Package(
        "pydantic",
        "import pydantic",
        "class Point(pydantic.BaseModel):\n    x: int\nreturn Point(x='3').model_dump()",
        {"x": 3},
    ),
    Package("orjson", "import orjson", "return {'text': orjson.dumps({'a': 1}).decode()}", {"text": '{"a":1}'}),
    Package("msgspec", "import msgspec", "return msgspec.json.decode(b'{\"a\":1}')", {"a": 1}),
    Package("PyYAML", "import yaml", "return yaml.safe_load('a: 1')", {"a": 1}),
    Package("python-dateutil", "from dateutil import parser", "return {'year': parser.parse('1 May 2026').year}", {"year": 2026}),
    Package("jinja2", "import jinja2", "return {'text': jinja2.Template('Hi {{ n }}').render(n='Ada')}", {"text": "Hi Ada"}),
    Package(
        "beautifulsoup4",
        "import bs4",
        "return {'text': bs4.BeautifulSoup('<p>hi</p>', 'html.parser').p.text}",
        {"text": "hi"},
    ),
    Package("lxml", "from lxml import etree", "return {'tag': etree.fromstring('<a><b/></a>')[0].tag}", {"tag": "b"}),
    Package("rich", "import io\nimport rich.console", "out = io.StringIO()\nrich.console.Console(file=out).print('[b]hi')\nreturn {'text': out.getvalue()}", {"text": "hi\n"}),
    Package("structlog", "import structlog", "structlog.get_logger().info('hello', n=1)\nreturn {'ok': True}", {"ok": True}),
    Package("loguru", "from loguru import logger", "logger.info('hello')\nreturn {'ok': True}", {"ok": True}),
    Package(
        "tenacity",
        "import tenacity",
        "calls = []\n"
        "@tenacity.retry(stop=tenacity.stop_after_attempt(3))\n"
        "def f():\n"
        "    calls.append(1)\n"
        "    assert len(calls) == 3\n"
        "f()\n"
        "return {'calls': len(calls)}",
        {"calls": 3},
    ),
    Package(
        "APScheduler",
        "import time\nfrom apscheduler.schedulers.background import BackgroundScheduler",
        "ran = []\n"
        "scheduler = BackgroundScheduler(timezone='UTC')\n"
        "scheduler.add_job(lambda: ran.append(1))\n"
        "scheduler.start()\n"
        "while not ran:\n"
        "    time.sleep(0.01)\n"
        "scheduler.shutdown()\n"
        "return {'ran': len(ran)}",
        {"ran": 1},
    ),
    Package(
        "cryptography",
        "from cryptography.fernet import Fernet",
        "key = Fernet(Fernet.generate_key())\nreturn {'text': key.decrypt(key.encrypt(b'hi')).decode()}",
        {"text": "hi"},
    ),
    Package("PyJWT", "import jwt", "return jwt.decode(jwt.encode({'a': 1}, 'k' * 32), 'k' * 32, ['HS256'])", {"a": 1}),
    Package("paramiko", "import paramiko", "return {'bits': paramiko.RSAKey.generate(1024).get_bits()}", {"bits": 1024}),
    Package("numpy", "import numpy", "return {'sum': float(numpy.arange(10.0).dot(numpy.ones(10)))}", {"sum": 45.0}),
    Package("pandas", "import pandas", "return {'sum': int(pandas.DataFrame({'a': [1, 2]}).a.sum())}", {"sum": 3}),
    Package("polars", "import polars", "return {'sum': polars.DataFrame({'a': [1, 2]})['a'].sum()}", {"sum": 3}),
    Package(
        "pillow",
        "import io\nfrom PIL import Image",
        "out = io.BytesIO()\nImage.new('RGB', (4, 4)).save(out, 'PNG')\nreturn {'size': list(Image.open(out).size)}",
        {"size": [4, 4]},
    ),
    Package(
        "matplotlib",
        "import io\nimport matplotlib\nmatplotlib.use('Agg')\nfrom matplotlib import pyplot",
        "out = io.BytesIO()\npyplot.plot([1, 2])\npyplot.savefig(out)\nreturn {'png': out.getvalue()[1:4].decode()}",
        {"png": "PNG"},
    ),
    Package(
        "scikit-learn",
        "from sklearn.linear_model import LinearRegression",
        "model = LinearRegression().fit([[0], [1]], [0, 2])\nreturn {'slope': round(float(model.coef_[0]), 3)}",
        {"slope": 2.0},
        (("allowRead", "/proc"),),
    ),
    Package("duckdb", "import duckdb", "return {'n': duckdb.sql('select 7').fetchall()[0][0]}", {"n": 7}, (("allowRead", "/proc,/sys/fs/cgroup"),)),
    Package("psutil", "import psutil", "return {'ok': psutil.virtual_memory().total > 0}", {"ok": True}, (("allowRead", "/proc"),)),
    Package("tqdm", "import tqdm", "return {'n': sum(tqdm.tqdm(range(4), disable=True))}", {"n": 6}),
    Package("click", "import click", "return {'text': click.unstyle(click.style('hi', fg='red'))}", {"text": "hi"}),
)  # fmt: skip
SMALL = (
    "requests",
    "PyYAML",
    "python-dateutil",
    "jinja2",
    "beautifulsoup4",
    "structlog",
    "tenacity",
    "PyJWT",
    "orjson",
    "msgspec",
)
