# What run.sh needs before it measures: a clean environment, a Python, CUDA's libraries, a longreel that starts and sees
# a GPU.
# shellcheck shell=bash disable=SC2154,SC2034 # run.sh's variables, and variables for its parts

# Removes what would change results or times, or make longreel think that a launcher started it.
environment() {
    unset NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE CUBLAS_EMULATION_STRATEGY CUBLAS_EMULATE_SINGLE_PRECISION \
        CUBLAS_EMULATE_DOUBLE_PRECISION CUDA_LAUNCH_BLOCKING CUDA_CACHE_DISABLE CUDA_FORCE_PTX_JIT CUDA_DISABLE_PTX_JIT \
        RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT RUST_LOG
    export PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin} HOME=${HOME:-/tmp}
    # Candle's kernels are PTX, which the driver compiles: once, not in each process.
    export CUDA_CACHE_PATH=$bundle/cache CUDA_CACHE_MAXSIZE=1073741824
    export CUDA_DEVICE_MAX_CONNECTIONS=32 # hardware queues: streams that share one would wait for each other
    export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
}

# The GPU's name, driver and memory.
gpu() {
    local found
    found=$(timeout 20 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1)
    echo "${found:-a GPU unknown to nvidia-smi}"
}

# Sets `python`: the first that has torch, or else the first that runs. `has_torch` is 1 with torch.
find_python() {
    local found
    local -a candidates=(${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python3"} "$(command -v python3)" ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python3"}
        /opt/*/bin/python3 /opt/*/.venv/bin/python3 "$HOME"/.venv/bin/python3)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    python='' has_torch=0
    for found in "${candidates[@]}"; do
        timeout 20 "$found" -c '' 2>/dev/null || continue
        python=${python:-$found}
        if timeout 20 "$found" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; then
            python=$found has_torch=1
            break
        fi
    done
    [ -n "$python" ] || [ -z "${PYTHON:-}" ] || say "PYTHON=$PYTHON does not run"
}

# Sets `libraries`: LD_LIBRARY_PATH for longreel. What is set comes first, then a toolkit, a Python environment's
# packages, a driver. Python itself goes without it, since torch brings libraries of its own.
find_libraries() {
    local folder nvcc
    local -a folders=()
    nvcc=$(command -v nvcc) && folders+=("$(dirname "$(dirname "$(realpath "$nvcc")")")/lib64")
    folders+=(${CUDA_HOME:+"$CUDA_HOME/lib64"} /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib)
    if [ -n "$python" ]; then
        while read -r folder; do folders+=("$folder"); done < <("$python" - 2>/dev/null <<'PY'
import glob, site, sys
roots = [p for p in sys.path if p.endswith("-packages")] + site.getsitepackages() + [site.getusersitepackages()]
for folder in dict.fromkeys(f for root in roots for f in sorted(glob.glob(root + "/nvidia/*/lib"))):
    print(folder)
PY
        )
    fi
    folders+=(/usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib64-nvidia /usr/lib/wsl/lib)
    libraries=${LD_LIBRARY_PATH:-} looked="the loader's own folders"
    [ -z "$libraries" ] || looked+=", LD_LIBRARY_PATH=$libraries"
    for folder in "${folders[@]}"; do
        looked+=", $folder"
        if [ -d "$folder" ]; then libraries+=${libraries:+:}$folder; else looked+=" (not there)"; fi
    done
}

# Names libraries that longreel wants and the loader does not find: what each is, and which other versions lie where it
# was looked for.
missing_libraries() {
    local name stem folder other others said=''
    local -a places
    IFS=: read -ra places <<<"$libraries"
    for name in $(LD_LIBRARY_PATH=$libraries ldd "$LONGREEL" 2>/dev/null | awk '/=> not found/ && !seen[$1]++ {print $1}'); do
        stem=${name%.so*} others=''
        for folder in "${places[@]}"; do
            for other in "$folder/$stem".so.*; do [ ! -e "$other" ] || others+=" $other"; done
        done
        said+="${said:+; }$name is not found"
        [ -z "$others" ] || said+=", only another version:$others"
        case $stem in
        libcuda) said+=" (NVIDIA's driver brings it, 580 or newer)" ;;
        libcu*) said+=" (CUDA 13 has it; in Python, nvidia-cublas and nvidia-curand)" ;;
        esac
    done
    echo "$said"
}

# Unpacks a program of the bundle, beside a link to its libraries: the bundle itself stays as small as it came.
unpack() {
    local to=$scratch/bin/$1
    mkdir -p "$scratch/bin" && ln -sfn "$bundle/lib" "$scratch/lib"
    gunzip -c "$bundle/bin/$1.gz" >"$to" 2>"$scratch/error" && chmod +x "$to" && return
    why="$bundle/bin/$1.gz cannot be unpacked: $(last_line "$scratch/error")"
    return 1
}

last_line() { grep -v '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1 | cut -c -400; }

# Whether longreel's libraries are all here, and it starts.
loads() {
    find_libraries
    why=$(missing_libraries)
    if [ -n "$why" ]; then
        why="longreel does not start: $why. Looked in $looked. LD_LIBRARY_PATH may name further folders"
        return 1
    fi
    with=(env "LD_LIBRARY_PATH=$libraries" "TMPDIR=$scratch")
    bounded 60 "${with[@]}" "$LONGREEL" --version >"$scratch/version" 2>"$scratch/error" && return
    why="longreel does not start: $(last_line "$scratch/error"). It wants CUDA 13's libraries and a driver of 580 or newer; found:"
    why+=$(LD_LIBRARY_PATH=$libraries ldd "$LONGREEL" 2>/dev/null | awk '/lib(cu|nv)/ && $3 ~ "/" {printf " %s", $3}')
    return 1
}

# Whether there is a GPU that computes; if so, its peaks are the first result.
computes() {
    bounded 120 "${with[@]}" "$LONGREEL" bench peak --device cuda --json >"$scratch/peak" 2>"$scratch/error"
    local status=$?
    case $status in
    0) cat "$scratch/peak" >>"$results/results.jsonl" ;;
    124) why="longreel starts, but the GPU ($(gpu)) has not answered in time" ;;
    *) why="longreel starts, but computes on no GPU: $(last_line "$scratch/error") ($(gpu))" ;;
    esac
    return $status
}

# Makes longreel ready, once: 0 if it starts here and computes on a GPU. One error says why not, otherwise.
start() {
    [ -z "${started:-}" ] || return "$started"
    export LONGREEL=$scratch/bin/longreel
    if unpack longreel && loads && computes; then
        started=0
    else
        started=1
        failure start "$why"
    fi
    return "$started"
}
