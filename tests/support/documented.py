"""Where each command that a document shows is run: by which test, or by none (`BY_HAND`)."""

from __future__ import annotations

BY_HAND = "shown without output; no test runs it"

_DEMO = "tests/redis/test_demo.py"
_DOCUMENTED = "tests/redis/test_documented.py::"
_URL = f"{_DOCUMENTED}test_a_worker_from_a_url_is_upgraded_rolled_back_and_stopped"
_CALL = f"{_DOCUMENTED}test_a_worker_is_called_from_a_shell_and_with_any_client"
_SECRET = f"{_DOCUMENTED}test_a_secret_is_encrypted_into_the_hash_and_read_with_its_key"
_SPEC = "tests/redis/test_spec_command.py"
_PACKAGES = "tests/redis/test_worker_with_packages.py"
_SPLIT = "tests/redis/test_example_workers.py::test_the_page_about_splitting_a_service"
_TESTING = "tests/redis/test_spec_tests.py::test_the_page_about_tests"
_SPEC = "tests/redis/test_spec_validation.py::test_the_page_about_checks"
_WALK = "tests/redis/test_walk.py"
_POSTGRES = "tests/redis/test_postgres_page.py"

COMMANDS = {
    'psql -q -d shop -c "CREATE ROLE shop_reader LOGIN PASSWORD \'secret-2\'" -c "GRANT SELECT ON orders TO shop_reader"': _POSTGRES,
    'sandboxrun set postgres-query 1 url="$PLUGINS/postgres-query" version=local allowNet=127.0.0.1:5432 \\': _POSTGRES,
    'echo \'{"postgres":"postgresql://shop_reader:secret-2@127.0.0.1:5432/shop"}\' |': _POSTGRES,
    "sandboxrun postgres-query 1 --yes < shop/worker.key": _POSTGRES,
    'sandboxrun call postgres-query --method search words="green & box" | grep -o \'{"item[^}]*}\'': _POSTGRES,
    'sandboxrun call postgres-query --method serach words=box | grep -o "there is no query.*?"': _POSTGRES,
    "createdb shop": _POSTGRES,
    "psql -q -d shop -c \"CREATE ROLE shop_writer LOGIN PASSWORD 'secret-1'\"": _POSTGRES,
    "sandboxrun sync plan shop --postgres-role shop_writer | psql -q -d shop": _POSTGRES,
    'sandboxrun set postgres-sync 1 url="$PLUGINS/postgres-sync" version=local sync="$(cat shop/sync.json)" \\': _POSTGRES,
    'echo "worker-v0 $(openssl rand -hex 32)" > shop/worker.key && chmod 600 shop/worker.key': _POSTGRES,
    'echo \'{"postgres":"postgresql://shop_writer:secret-1@127.0.0.1:5432/shop"}\' |': _POSTGRES,
    "sandboxrun postgres-sync 1 --yes < shop/worker.key": _POSTGRES,
    "redis-cli -u \"$REDIS_URL\" XADD order:req:x '*' type order \\": _POSTGRES,
    'redis-cli -u "$REDIS_URL" XADD order:req:x \'*\' type order data \'{"item":"tea","price":"cheap"}\'': _POSTGRES,
    'psql -At -d shop -c "SELECT item, price FROM orders': _POSTGRES,
    'psql -At -d shop -c "SELECT item FROM orders WHERE whole @> \'{\\"item\\": \\"tea\\"}\'"': _POSTGRES,
    'psql -At -d shop -c "SELECT * FROM sales"': _POSTGRES,
    "sandboxrun dead postgres-sync show all | grep -o 'invalid input syntax for type numeric'": _POSTGRES,
    "sandboxrun call count n=0": _SPEC,
    "sandboxrun dev counter --allow-redis='count:*' --record": "tests/redis/test_dev_tests.py",
    "sandboxrun test counter": _TESTING,
    "sandboxrun test counter --update": _TESTING,
    "sandboxrun test counter -v": _TESTING,
    "demo/clean.sh && demo/run.sh": _DEMO,
    "tests/run.sh": BY_HAND,
    "tests/run.sh tests/redis/identity": BY_HAND,
    "pip install '.[dev]'": BY_HAND,
    "sandboxrun check": "tests/kernel/test_check.py",
    "sandboxrun set greeter url=https://raw.githubusercontent.com/OWNER/REPO/main/worker.py version=v1.0.0": BY_HAND,
    # tests/redis/identity/test_calling.py pastes such commands from the hint of an error
    "sandboxrun set order 1 allowCall=price,bank": BY_HAND,
    "sandboxrun approve order 1": BY_HAND,
    "sandboxrun agent greeter": BY_HAND,  # tests/redis/test_agent.py does so with other types
    "sandboxrun scale greeter 50": BY_HAND,
    "sandboxrun set shop 1 url=$PWD/shop version=local": _SPLIT,
    "sandboxrun shop 1": _SPLIT,
    "sandboxrun call shop --method order.place item=tea count=2": _SPLIT,
    "sandboxrun call shop --method order.plase item=tea": _SPLIT,
    "sandboxrun call shop --method price.quote itm=tea": _SPLIT,
    "sandboxrun stop shop 1": _SPLIT,
    "sandboxrun set price url=$PWD/shop version=local services=price": _SPLIT,
    "sandboxrun set order url=$PWD/shop version=local services=order allowCall=price": _SPLIT,
    "sandboxrun price 1": _SPLIT,
    "sandboxrun price 2": _SPLIT,
    "sandboxrun order 1": _SPLIT,
    "sandboxrun call order --method place item=tea count=2": _SPLIT,
    "sandboxrun agent greeter resizer --key-file common.key --key-file resizer=resizer.key": BY_HAND,
    "sandboxrun set bot 1 url=https://raw.githubusercontent.com/OWNER/REPO/main/worker.py version=v1.2.0": _URL,
    "sandboxrun set bot 1 allowNet=api.telegram.org:443": _URL,
    "sandboxrun bot 1": _URL,
    "sandboxrun set bot 1 version=v1.1.0": _URL,
    "sandboxrun set bot 1 version=v1.2.0": _URL,
    "sandboxrun stop bot 1": _URL,
    "export REDIS_URL=redis://default:PASSWORD@127.0.0.1:6379": BY_HAND,
    "redis-cli CONFIG SET requirepass PASSWORD": BY_HAND,
    "sandboxrun call demo-worker name=you": _CALL,
    'sandboxrun call demo-worker \'{"name":"you"}\' --timeout 5': _CALL,
    "redis-cli XADD demo-worker:req:x '*' ref r1 type demo-worker data '{\"name\":\"you\"}'": _CALL,
    "redis-cli BRPOP res:r1 5": _CALL,
    'echo \'{"token":"t0ken"}\' | sandboxrun encrypt demo-worker 1 --key-file demo.key --write': _SECRET,
    "sandboxrun demo-worker 1 < demo.key": _SECRET,
    "sandboxrun set greeter 1 url=$HOME/greeter version=local": _WALK,
    "sandboxrun perms greeter 1 --net api.example.com:443": _WALK,
    "sandboxrun spec schema > spec.schema.json": _SPEC,
    "sandboxrun spec show price": _SPEC,
    "sandboxrun spec show price --markdown > price.md": _SPEC,
    "sandboxrun spec types price > price_types.py": _SPEC,
    "sandboxrun spec asyncapi price > price.asyncapi.json": _SPEC,
    "sandboxrun spec import price.asyncapi.json > spec.json": _SPEC,
    "sandboxrun init greeter": _WALK,
    "sandboxrun dev greeter --learn": _WALK,
    "sandboxrun init --package greeter": _PACKAGES,
    "sandboxrun lock greeter": _PACKAGES,
    "sandboxrun lock greeter --check": _PACKAGES,
    "sandboxrun dev greeter": _WALK,
    ".venv/bin/python -m pytest -q tests/unit": BY_HAND,
    "TMPDIR=$(mktemp -d) .venv/bin/python -m pytest -q -n 3 tests/kernel": BY_HAND,
    ".venv/bin/python -m pytest -q tests/kernel/test_races.py -k swapped": BY_HAND,
    ".venv/bin/python -c 'from sandboxrun.sandbox.compile import seccomp; print(seccomp.markdown())'": BY_HAND,
    "python -m pip install build": BY_HAND,
    "python -m build": BY_HAND,
    "python -m venv /tmp/try && /tmp/try/bin/pip install dist/sandboxrun-*.whl && /tmp/try/bin/sandboxrun check": BY_HAND,
    "sudo python3 -m venv /opt/sandboxrun": BY_HAND,
    "sudo /opt/sandboxrun/bin/pip install 'sandboxrun[packages]'": BY_HAND,
    "sudo systemd-sysusers deploy/systemd/sandboxrun.sysusers": BY_HAND,
    "sudo install -D -m 600 /dev/null /etc/sandboxrun/environment": BY_HAND,
    "sudo cp deploy/systemd/sandboxrun-agent.service deploy/systemd/sandboxrun@.service /etc/systemd/system/": BY_HAND,
    "sudo systemctl enable --now sandboxrun-agent.service": BY_HAND,
    'sudo systemctl enable --now "$(systemd-escape --template=sandboxrun@.service demo-worker:1)"': BY_HAND,
    "docker build --file deploy/Dockerfile --tag sandboxrun .": BY_HAND,
    "docker run --rm sandboxrun check --seccomp-profile >seccomp.json": BY_HAND,
    "docker run --rm --security-opt seccomp=seccomp.json --cap-drop ALL --read-only --tmpfs /tmp sandboxrun check": BY_HAND,
    "REDIS_PASSWORD=PASSWORD docker compose --file deploy/compose.yaml up --build": BY_HAND,
    "sandboxrun check --seccomp-profile | sudo install -D -m 644 /dev/stdin /var/lib/kubelet/seccomp/sandboxrun.json": BY_HAND,
    "kubectl create secret generic --from-literal=redis-password=PASSWORD --from-file=key=KEYFILE sandboxrun": BY_HAND,
    "kubectl apply --filename deploy/kubernetes/agent.yaml": BY_HAND,
}
