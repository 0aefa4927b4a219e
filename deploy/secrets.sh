#!/bin/sh
# Makes the secrets of compose.yaml, in deploy/secrets, where they are not there yet.
set -eu
folder=$(dirname "$0")/secrets
# The folder keeps other users out. The files can be read, since the containers that they are mounted
# into have users of their own.
mkdir -p "$folder"
chmod 700 "$folder"
umask 022

make() {
    [ -e "$folder/$1" ] || printf '%s\n' "$2" >"$folder/$1"
}

make database_password "$(openssl rand -hex 24)"
make database_url "postgresql://runbell:$(cat "$folder/database_password")@postgresql/runbell"
make encryption_key "$(openssl rand -base64 32)"
make api_key "sk-$(openssl rand -hex 24)"
echo "the secrets are in $folder; keep a copy of encryption_key apart from the backups"
