# SPDX-License-Identifier: Apache-2.0
. "$REPOSITORY/tests/docs_setup/capacity.sh"
seq 20 > app.log
export UPSEAL_PASSPHRASE=example
cp app.log /var/log/app.log
mkdir -p ~/.local/share/bash-completion/completions ~/.config/fish/completions ~/zfunc
fpath=(zsh ~/zfunc)
