# damage.sh - sourced before each golden command: copies of the bundled files with one thing wrong.
# A safetensors file is a 64-bit little-endian length, that many bytes of JSON, then the data the JSON's offsets point into.

# A model folder of symbolic links, of which a case replaces what it damages.
model_copy() { # model, folder
  mkdir -p "$2"
  ln -s "$ROOT/models/$1"/* "$2"
}

# Replaces a file by what a sed program makes of it.
edit() { # file, sed program
  sed -E "$2" "$1" >"$1.new" && rm "$1" && mv "$1.new" "$1"
}

st_header_bytes() { od -An -tu8 -N8 "$1" | tr -d ' '; }

st_put_length() { # number: prints its 8 bytes
  local n=$1 i
  for i in 0 1 2 3 4 5 6 7; do
    printf "\\x$(printf %02x $((n & 255)))"
    n=$((n >> 8))
  done
}

# Rewrites the JSON of a safetensors file by a sed program; the data stays as it is.
st_edit() { # file, sed program
  local n header
  n=$(st_header_bytes "$1")
  header=$(tail -c +9 "$1" | head -c "$n" | sed -E "$2")
  {
    st_put_length ${#header}
    printf '%s' "$header"
    tail -c +$((9 + n)) "$1"
  } >"$1.new"
  rm "$1" && mv "$1.new" "$1"
}

# The first data byte of a tensor, from the start of the file.
st_offset() { # file, tensor
  local n
  n=$(st_header_bytes "$1")
  echo $((8 + n + $(tail -c +9 "$1" | head -c "$n" | grep -oE "\"$2\":\{[^}]*\}" | sed -E 's/.*"data_offsets":\[([0-9]+),.*/\1/')))
}

# Writes bytes over those of a file.
poke() { # file, offset, printf format
  local copy=$1.new
  cat "$1" >"$copy"
  printf "$3" | dd of="$copy" bs=1 seek="$2" conv=notrunc status=none
  rm "$1" && mv "$copy" "$1"
}

# A folder of the bundled evaluation sets.
data_copy() { # folder
  mkdir -p "$1"
  ln -s "$ROOT/datasets/worldlet"/* "$1"
}

# Prints a CSV's columns by name, numbers with a point rounded to three significant digits: fields here hold no comma.
columns() { # file, name...
  local file=$1
  shift
  awk -F, -v want="$*" '
    NR == 1 { n = split(want, w, " "); for (i = 1; i <= NF; i++) at[$i] = i }
    {
      line = ""
      for (i = 1; i <= n; i++) {
        v = $(at[w[i]])
        if (v ~ /^-?[0-9]+\.[0-9]+(e.*)?$/) v = sprintf("%.3g", v)
        line = line (i > 1 ? "," : "") v
      }
      print line
    }' "$file"
}
