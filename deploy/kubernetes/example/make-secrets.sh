#!/bin/sh
# Writes `proxy-secret.yaml` with a generated secret between Traefik and the shim.
#
#   ./make-secrets.sh [postgresql]
#
# With `postgresql` also `database-secret.yaml`, for the component. Existing files stay as they are: then the script
# only says what is missing in them, and exits with 1 if something is.
set -eu
cd "$(dirname "$0")"
status=0

fail() {
    echo "make-secrets.sh: $*" >&2
    exit 1
}

secret() {
    value=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
    [ "${#value}" -eq 64 ] || fail "cannot read 32 random bytes from /dev/urandom"
    echo "$value"
}

# exists FILE KEY…: says what is missing in a file that exists. Returns 1 if there is no file.
exists() {
    file=$1
    [ -e "$file" ] || [ -L "$file" ] || return 1
    shift
    missing=
    for key in "$@"; do
        grep -Eq "^  $key: .+" "$file" || missing="$missing $key"
    done
    if [ -n "$missing" ]; then
        echo "make-secrets.sh: $file exists and is not changed. Missing in it:$missing" >&2
        status=1
    else
        echo "$file exists and is complete. Nothing was changed."
    fi
}

# write FILE NAME: writes a Secret; its data is the standard input.
write() {
    new=$1.$$
    trap 'rm -f "$new"' EXIT
    (umask 077 && : > "$new")
    printf 'apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: navidrome\nstringData:\n' "$2" > "$new"
    cat >> "$new"
    # A hard link fails if the file exists by now.
    ln "$new" "$1" || fail "$1 exists by now, and is not changed"
    rm -f "$new"
    echo "Wrote $(pwd)/$1. It is secret: keep it out of your repository."
}

case ${1-} in '' | postgresql) ;; *) fail "'$1' is not known. Use no argument, or postgresql" ;; esac

exists proxy-secret.yaml proxy-secret || write proxy-secret.yaml navidrome-shim <<END
  proxy-secret: $(secret)
END
if [ "${1-}" = postgresql ]; then
    password=$(secret)
    exists database-secret.yaml password url || write database-secret.yaml navidrome-shim-database <<END
  password: $password
  url: postgresql+psycopg://shim:$password@navidrome-shim-database/shim
END
fi
exit $status
