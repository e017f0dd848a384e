#!/bin/sh
# Makes the certificates of compose.tls.yaml, and renews them when it is run again: the authority stays, and running
# services take the new files with the next connection.
#   sudo deploy/certificates.sh HOST [CLIENT...]
# HOST is the name by which clients reach tmemd; `ops`, its administrator, and every CLIENT get a certificate and a key.
# All lies in deploy/tls, or TMEM_TLS. ca.key is for this script alone: keep it from the services and from clients.
set -eu
umask 077
[ $# -ge 1 ] || { echo "usage: $0 HOST [CLIENT...]" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "$0: root alone can give the keys to the users of the containers" >&2; exit 1; }
host=$1; shift
tls=${TMEM_TLS:-$(dirname "$0")/tls}
mkdir -p "$tls/clients" "$tls/tmemd" "$tls/prometheus" "$tls/demo"
cd "$tls"
work=$(mktemp -d ./.new.XXXXXX)
trap 'rm -rf "$work"' EXIT
new="openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"

# OWNER FOLDER NAME EXTENSIONS: a certificate and its key, and the authority's beside them.
issue() {
    printf '%b' "$4" > "$work/ext"
    $new -subj "/CN=$3" -keyout "$work/key" -out "$work/csr" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
    openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -in "$work/csr" -days 365 -extfile "$work/ext" \
        -out "$work/pem" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
    cp ca.pem "$work/ca"
    chmod 400 "$work/key"
    chmod 444 "$work/pem" "$work/ca"
    chown "$1" "$work/key" "$work/pem" "$work/ca" "$2"
    mv "$work/ca" "$2/ca.pem"
    mv "$work/key" "$2/$3.key"
    mv "$work/pem" "$2/$3.pem"
}

if [ ! -e ca.pem ]; then
    $new -x509 -days 3650 -subj "/CN=tmem clients and servers" -keyout ca.key -out "$work/authority" 2> /dev/null
    mv "$work/authority" ca.pem
elif [ ! -e ca.key ]; then
    echo "$0: $(pwd)/ca.key is not there; certificates of another authority would shut all clients out: put it back" >&2
    exit 1
fi
# tmemd is its name for the services beside it.
issue 7717:7717 tmemd server \
    "subjectAltName=DNS:$host,DNS:tmemd,DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"
issue 65534:65534 prometheus prometheus 'extendedKeyUsage=clientAuth\n'
issue 7717:7717 demo demo 'extendedKeyUsage=clientAuth\n'
for client in ops "$@"; do
    issue "$(id -u):$(id -g)" clients "$client" 'extendedKeyUsage=clientAuth\n'
done
echo "made in $(pwd): give a client clients/ca.pem and its own two files; administrator: clients/ops.pem and .key"
