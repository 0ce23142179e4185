#!/bin/sh
# Runs a command without the caller's abe settings, which would select another backend or store.
# ABE_TEST_* stays: it names the brokers that tests may use.
set -eu
for name in $(env | sed -n 's/^\(ABE_[A-Za-z0-9_]*\)=.*/\1/p'); do
    case $name in
        ABE_TEST_*) ;;
        *) unset "$name" ;;
    esac
done
# Hundreds of processes would each compile what they import.
unset QUEUE_BACKEND PYTHONDONTWRITEBYTECODE
exec "$@"
