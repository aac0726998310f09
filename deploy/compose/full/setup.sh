#!/bin/sh
# Writes `.env` for compose.yml: two host names, the music folder, and generated secrets.
#
#   ./setup.sh [NAVIDROME_HOST AUTHENTIK_HOST [MUSIC_FOLDER]]
#
# Asks for what is not given. An existing `.env` stays as it is: then the script only says what is missing in it,
# and exits with 1 if something is.
set -eu
cd "$(dirname "$0")"
file=.env
names="NAVIDROME_HOST AUTHENTIK_HOST MUSIC_FOLDER NAVIDROME_USER SHIM_PROXY_SECRET PG_PASS AUTHENTIK_SECRET_KEY AUTHENTIK_BOOTSTRAP_PASSWORD"

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

# Random bytes as hexadecimal digits: no character that Compose, a URL or a shell reads as syntax.
secret() {
    value=$(od -An -v -tx1 -N"$1" /dev/urandom | tr -d ' \n')
    [ "${#value}" -eq $(($1 * 2)) ] || fail "cannot read $1 random bytes from /dev/urandom"
    echo "$value"
}

is_host() {
    case $1 in *[!a-z0-9.-]*) return 1 ;; esac
    [ "${#1}" -le 253 ] && printf '%s\n' "$1" |
        grep -Eqx '([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?'
}

# ask QUESTION: prints the answer.
ask() {
    printf '%s ' "$1" >&2
    read -r answer || fail "no answer. Give the values as arguments: ./setup.sh music.example.org auth.example.org"
    echo "$answer"
}

if [ -e "$file" ] || [ -L "$file" ]; then
    missing=
    for name in $names; do
        grep -Eq "^$name=.+" "$file" || missing="$missing $name"
    done
    [ -z "$missing" ] || fail "$file exists and is not changed. Missing in it:$missing"
    echo "$file exists and is complete. Nothing was changed."
    exit 0
fi

navidrome=${1-} authentik=${2-} music=${3-}
[ -n "$navidrome" ] || navidrome=$(ask "Host name of Navidrome (music.example.org):")
is_host "$navidrome" || fail "'$navidrome' is not a host name in lower case, such as music.example.org"
[ -n "$authentik" ] || authentik=$(ask "Host name of authentik (auth.example.org):")
is_host "$authentik" || fail "'$authentik' is not a host name in lower case, such as auth.example.org"
[ "$navidrome" != "$authentik" ] || fail "Navidrome and authentik need two different host names"
if [ -z "$music" ]; then
    if [ $# -ge 2 ]; then music=./music; else music=$(ask "Folder with your music [./music]:"); fi
    [ -n "$music" ] || music=./music
fi
newline='
'
case $music in
    *[\'\"\$\\\`]* | *"$newline"*)
        fail "the music folder's path must not have a quote, \$, \\ or a new line in it: $music" ;;
    /* | ./*) ;;
    *) music=./$music ;;
esac

# Navidrome runs as the user who runs this script, or as user 1000 if that is root.
user=$(id -u):$(id -g)
[ "$(id -u)" -ne 0 ] || user=1000:1000

new=$file.$$
trap 'rm -f "$new"' EXIT
(umask 077 && : > "$new")
cat > "$new" <<END
# Written by setup.sh. It holds secrets: keep it private, and in your backup.
NAVIDROME_HOST=$navidrome
AUTHENTIK_HOST=$authentik
MUSIC_FOLDER='$music'
NAVIDROME_USER=$user

# Between Traefik and the shim: proves that a request took the authenticated route.
SHIM_PROXY_SECRET=$(secret 32)

# authentik's database and sessions.
PG_PASS=$(secret 32)
AUTHENTIK_SECRET_KEY=$(secret 48)
# The first password of authentik's admin, akadmin. Change it after you signed in.
AUTHENTIK_BOOTSTRAP_PASSWORD=$(secret 16)
END
for name in $names; do
    grep -Eq "^$name=.+" "$new" || fail "could not write $name"
done
# A hard link fails if the file exists by now.
ln "$new" "$file" || fail "$file exists by now, and is not changed"
mkdir -p data/navidrome
[ "$(id -u)" -ne 0 ] || chown "$user" data/navidrome
case $music in ./*) mkdir -p "$music" ;; esac

echo "Wrote $(pwd)/$file."
echo "Next:"
echo "  1. Point $navidrome and $authentik at this machine, ports 80 and 443."
echo "  2. docker compose up --build --detach"
echo "  3. Open https://$navidrome and sign in as akadmin, with AUTHENTIK_BOOTSTRAP_PASSWORD in $file."
