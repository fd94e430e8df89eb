# Sourced by the test scripts: the program to test, and a server of it on a free port with a data
# directory of its own. Sets `KEYPEG_BINARY`, `url`, `dir` and `server`.

# Builds the program, unless KEYPEG_BINARY names one: with other features than the build of all tests,
# cargo would compile the server once more.
find_keypeg() {
  if [ -z "${KEYPEG_BINARY:-}" ]; then
    (cd "$root" && cargo build --locked -q -p keypeg) || return 1
    KEYPEG_BINARY=$root/target/debug/keypeg
  fi
  KEYPEG_BINARY=$(realpath -e "$KEYPEG_BINARY") && export KEYPEG_BINARY
}

# Starts the server, or returns 1 after printing its log.
start_server() {
  dir=$(mktemp -d)
  "$KEYPEG_BINARY" serve --listen 127.0.0.1:0 --data "$dir/data" >"$dir/ready" 2>"$dir/log" &
  server=$!
  for _ in $(seq 300); do
    [ -s "$dir/ready" ] && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  url=$(grep -o 'http://[0-9.]*:[0-9]*' "$dir/ready") || { cat "$dir/log" >&2; return 1; }
}

# Kills the server, if it still runs, and deletes its directory.
kill_server() {
  [ -n "${server:-}" ] && kill -KILL "$server" 2>/dev/null && wait "$server" 2>/dev/null
  rm -rf "${dir:-}"
}

# Creates a Python environment in `$1` with the packages that the file `$2` pins, once.
install_python() {
  local venv=$1 packages=$2
  cmp -s "$packages" "$venv/installed" && return
  rm -rf "$venv"
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3 python3-venv || return 1
  fi
  python3 -m venv "$venv" || return 1
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps -r "$packages" || return 1
  cp "$packages" "$venv/installed"
}
