#!/bin/sh
# gpu_probe.sh NVCC: prints the toolkit's folder if NVCC is 12.4 or newer and compiles a kernel; else the reason, exit 1.
nvcc=$1
version=$("$nvcc" --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
set -- $version
if [ "${1:-0}" -lt 12 ] || { [ "$1" -eq 12 ] && [ "$2" -lt 4 ]; }; then
    echo "nvcc is ${1:-?}.${2:-?}, expected 12.4 or newer" >&2
    exit 1
fi
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
echo '__global__ void probe(float *x) { x[0] = 1; }' >"$dir/probe.cu"
if ! "$nvcc" -arch=compute_80 -ptx "$dir/probe.cu" -o "$dir/probe.ptx" 2>"$dir/log"; then
    echo "nvcc $1.$2 does not compile a probe: $(head -n 1 "$dir/log")" >&2
    exit 1
fi
"$nvcc" --dryrun "$dir/probe.cu" 2>&1 | sed -n 's/^#\$ TOP=//p' | { read -r top; cd "$top" && pwd -P; }
