#!/usr/bin/env bash
# A small FFmpeg for the GPU bundle: Debian's source, configured to read and write the videos that longreel does,
# without the hundred libraries that Debian's own build needs.
#
#   scripts/bundle/ffmpeg.sh FOLDER      builds into FOLDER/ffmpeg, unless it is there
set -euo pipefail
folder=$(realpath "$1")
[ -e "$folder/ffmpeg/lib/libavcodec.so" ] && exit 0
command -v apt-get >/dev/null || { echo "ffmpeg.sh: FFmpeg's source comes by apt-get, which is not here" >&2; exit 1; }

work=$folder/ffmpeg-source
rm -rf "$work" && mkdir -p "$work"/{state/lists/partial,cache/archives/partial}
# shellcheck disable=SC1091
. /etc/os-release
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$keyring] http://deb.debian.org/debian $VERSION_CODENAME main" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::State="$work/state" -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache" \
        -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- "$@"
}
cd "$work"
apt update
apt --download-only source ffmpeg
tar -xf ffmpeg_*.orig.tar.xz --strip-components=1

codecs=h264,hevc,vp9,mpeg4,msmpeg4v3,mpeg1video,mpeg2video,mjpeg,png,prores,ffv1,rawvideo
./configure --prefix="$folder/ffmpeg" --enable-shared --disable-static --disable-everything --disable-autodetect \
    --disable-programs --disable-doc --disable-network --disable-x86asm --disable-avdevice --disable-avfilter \
    --disable-swresample --disable-debug --enable-decoder=$codecs --enable-parser=h264,hevc,vp9,mpeg4video,mpegvideo,mjpeg \
    --enable-demuxer=mov,matroska,avi,mpegvideo --enable-muxer=mp4,mov --enable-encoder=mpeg4,png --enable-protocol=file \
    --enable-bsf=h264_mp4toannexb,hevc_mp4toannexb,vp9_superframe_split,extract_extradata --enable-swscale >configure.log
make -s -j"$(nproc)" >make.log 2>&1 || { tail -20 make.log >&2; exit 1; }
make -s install >>make.log 2>&1
cd "$folder" && rm -rf "$work"
