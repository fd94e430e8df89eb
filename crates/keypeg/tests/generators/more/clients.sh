# Sourced by ../run --all: seven more generators. Like those in ../run, each function gets an empty
# directory as its working directory.

clients+=(openapi_generator_python openapi_generator_rust openapi_fetch orval swagger_typescript_api
  typescript_fetch typescript_axios)
more=$here/more

openapi_generator() {
  "$work/venv/bin/openapi-generator-cli" generate -g "$1" -i "$document" -o client "${@:2}" >generate.log
}

openapi_generator_python() {
  openapi_generator python || return 1
  install_python "$work/venv-more" "$more/requirements.txt" || return 1
  PYTHONPATH=client "$work/venv-more/bin/python" "$more/session.py" "$url"
}

openapi_generator_rust() {
  openapi_generator rust --additional-properties=packageName=openapi || return 1
  mkdir src && cp "$more/session.rs" src/main.rs
  cat >Cargo.toml <<'EOF'
[package]
name = "session"
version = "0.0.0"
edition = "2024"
[dependencies]
openapi = { path = "client" }
serde_json = "1"
tokio = { version = "1", features = ["rt", "macros"] }
[workspace]
EOF
  CARGO_TARGET_DIR=$work/rust-target cargo run -q -- "$url"
}

# Compiles the session of one TypeScript generator, and runs it. Its client is already generated.
typescript_session() {
  cp "$more/$1.ts" "$more/session.ts" .
  sed 's/"session.ts", "client"/"*.ts", "client"/' "$here/typescript/tsconfig.json" >tsconfig.json
  npx --no-install tsc -p . && node "out/$1.js" "$url" "${1//_/-}"
}

more_node() {
  install_node more && ln -s "$work/node-more/node_modules" node_modules
}

openapi_fetch() {
  more_node && npx --no-install openapi-typescript "$document" -o client.ts || return 1
  typescript_session openapi_fetch
}

orval() {
  more_node && npx --no-install orval --input "$document" --output client.ts --client fetch || return 1
  typescript_session orval
}

swagger_typescript_api() {
  more_node || return 1
  npx --no-install swagger-typescript-api generate -p "$document" -o client -n api.ts || return 1
  typescript_session swagger_typescript_api
}

typescript_fetch() {
  more_node && openapi_generator typescript-fetch && typescript_session typescript_fetch
}

typescript_axios() {
  more_node && openapi_generator typescript-axios && typescript_session typescript_axios
}
