#!/usr/bin/env bash
# Puts what a page needs of transformers.js into a folder: the library, and the build of onnxruntime-web that it names, as
# npm has them. Nothing of them is run while it is fetched. Needs npm, node and tar.
#
#     bash scripts/browser_vendor.sh DIR
set -euo pipefail

version=4.3.1
mkdir -p "$1"
target=$(cd "$1" && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"

fetch() { # a package of npm into a folder of its name
  mkdir "$2"
  tar -xzf "$(npm pack --silent --ignore-scripts "$1" | tail -n 1)" -C "$2" --strip-components 1
}

fetch "@huggingface/transformers@$version" transformers
fetch "onnxruntime-web@$(node -p 'require("./transformers/package.json").dependencies["onnxruntime-web"]')" runtime
cp transformers/dist/transformers.min.js runtime/dist/ort-wasm-simd-threaded.asyncify.{mjs,wasm} "$target"
cp transformers/LICENSE "$target/LICENSE.transformers"
