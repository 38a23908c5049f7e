//! scripts/wgmma_hazards.py on machine code and logs as the CUDA tools print them: what is right passes, and each
//! misuse of a product's registers is found.

use std::path::Path;
use std::process::{Command, Output};

/// Two groups of products of flash_backward_q_bf16_d96, shortened: of tiles, and of registers and a tile. The first
/// sums, R88 on, are turned into the left operand, R72 to R79, of the second.
const KERNEL: &str = "\
LDG.E.128 R88, desc[UR6][R10.64]
WARPGROUP.ARRIVE
HGMMA.64x32x16.F32.BF16 R88, gdesc[UR16], RZ, !UPT
UMOV UR16, UR18
ISETP.GE.AND P5, PT, R11, UR24, PT
HGMMA.64x32x16.F32.BF16 R88, gdesc[UR16], R88, gsb0
WARPGROUP.DEPBAR.LE gsb0, 0x0
FFMA R14, R5.reuse, R93, -R8
@!P5 FMUL R30, R30, R14
F2FP.BF16.F32.PACK_AB R72, R89, R88
SHFL.BFLY PT, R9, R8, 0x1, 0x1f
WARPGROUP.ARRIVE
HGMMA.64x96x16.F32.BF16 R24, R72, gdesc[UR12].tnspB, R24
IMAD.WIDE.U32 R10, R9, UR4, RZ
HGMMA.64x96x16.F32.BF16 R24, R76, gdesc[UR12].tnspB, R24, gsb0
WARPGROUP.DEPBAR.LE gsb0, 0x0
FADD R3, R24, R25
@P0 BRA 0x1ab0
EXIT";

/// The instructions as `cuobjdump --dump-sass` prints them.
fn dump(instructions: &str) -> String {
    let line = |(i, line): (usize, &str)| {
        let (predicate, rest) = if line.starts_with('@') { line.split_once(' ').unwrap() } else { ("", line) };
        let code = format!("{:#018x}", 0x79c5 + i);
        format!("        /*{:04x}*/ {predicate:>16}  {rest} ;    /* {code} */\n                /* {code} */\n", i * 16)
    };
    let body: String = instructions.lines().enumerate().map(line).collect();
    format!("\tcode for sm_90a\n\t\tFunction : kernel\n\t.headerflags\t@\"EF_CUDA_SM90\"\n{body}\t\t..........\n")
}

fn run(script: &str, args: &[&str]) -> (Output, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let mut python = Command::new("python3");
    python.arg("-B").arg(script).args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = python.output().expect("python3 runs");
    let text =
        [&output.stdout[..], &output.stderr[..]].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    (output, text)
}

fn check(name: &str, text: &str) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    std::fs::write(&file, text).unwrap();
    run("wgmma_hazards.py", &[file.to_str().unwrap()])
}

fn caught(from: &str, to: &str, message: &str) {
    assert_eq!(KERNEL.matches(from).count(), 1, "{from:?} in the kernel");
    let (output, text) = check("kernel.sass", &dump(&KERNEL.replace(from, to)));
    assert!(output.status.code() == Some(1) && text.contains(message), "{from:?} -> {to:?}: {text}");
    assert!(text.contains("products, 1 hazards"), "{from:?} -> {to:?}: {text}");
}

#[test]
fn registers_that_rest_while_products_work_pass() {
    let (output, text) = check("kernel.sass", &dump(KERNEL));
    assert!(output.status.success() && text.contains("kernel: 4 products, 0 hazards"), "{text}");
}

#[test]
fn a_register_that_a_product_has_is_not_written() {
    let during = "IMAD.WIDE.U32 R10, R9, UR4, RZ";
    let message = "writes a register that a product has";
    caught(during, "FMUL R71, R3, R4", message); // the last of 48 sums
    caught(during, "SHFL.BFLY PT, R24, R8, 0x1, 0x1f", message);
    caught(during, "IMAD.WIDE R22, R9, UR4, RZ\nCS2R R70, SRZ", message);
    caught(during, "LEA R75, P0, R20, UR26, 0x4", message); // the last of four registers of the left operand
    caught(during, "LDS.128 R72, [UR9]", message);
    caught(during, "@!P1 MOV R30, R3", message);
    caught("UMOV UR16, UR18", "LDG.E.64 R102, desc[UR6][R8.64]", message); // R103 is the last of 16
}

#[test]
fn sums_are_not_read_before_the_wait() {
    let message = "reads sums of a product that is not waited for";
    caught("ISETP.GE.AND P5, PT, R11, UR24, PT", "ISETP.GE.AND P5, PT, R90, UR24, PT", message);
    caught("IMAD.WIDE.U32 R10, R9, UR4, RZ", "STG.E.64 desc[UR4][R6.64], R40", message);
    let (from, to) = ("WARPGROUP.DEPBAR.LE gsb0, 0x0\nFFMA R14", "WARPGROUP.DEPBAR.LE gsb0, 0x1\nFFMA R14");
    let (output, text) = check("kernel.sass", &dump(&KERNEL.replace(from, to)));
    assert!(output.status.code() == Some(1) && text.contains(message), "one group was left at work: {text}");
}

#[test]
fn what_is_written_before_a_product_is_fenced() {
    let message = "takes registers that were written with no fence since";
    caught("WARPGROUP.ARRIVE\nHGMMA.64x96", "WARPGROUP.ARRIVE\nFMUL R30, R30, R14\nHGMMA.64x96", message);
    let (from, to) =
        ("WARPGROUP.ARRIVE\nHGMMA.64x96", "WARPGROUP.ARRIVE\nF2FP.BF16.F32.PACK_AB R74, R89, R88\nHGMMA.64x96");
    caught(from, to, message);
    let (output, text) = check("kernel.sass", &dump(&KERNEL.replace("WARPGROUP.ARRIVE\n", "")));
    assert!(output.status.code() == Some(1) && text.contains(message), "no fence at all: {text}");
}

#[test]
fn code_that_the_check_cannot_follow_is_an_error() {
    caught("UMOV UR16, UR18", "BRA 0x100", "leaves the code that this check can follow");
    caught("HGMMA.64x96x16.F32.BF16 R24, R72, gdesc[UR12].tnspB, R24", "HGMMA.SP R24, R72", "cannot read");
    let unwaited = KERNEL.rsplit_once("WARPGROUP.DEPBAR").unwrap().0;
    let (output, text) = check("kernel.sass", &dump(unwaited));
    assert!(output.status.code() == Some(1) && text.contains("that nothing waits for"), "{text}");
}

/// What nvcc 13.0 printed of kernels/flash_forward.cu without `wgmma_begin`, with sums that are touched between
/// products, and with a wait that lets a group go on: it compiles, and warnings being errors does not change that.
const LOG: [&str; 3] = [
    "ptxas info    : (C7519) warpgroup.arrive is injected in around line 1623 by compiler to allow use of registers in GMMA in function 'f'",
    "ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma instructions reading \
     accumulator registers of  a wgmma between start and end of the pipeline stage in the function 'f'",
    "ptxas info    : (C7517) warpgroup.wait is injected in around line 16654 by compiler to allow use of registers defined by GMMA in \
     function 'f'",
];

#[test]
fn products_that_ptxas_changes_are_an_error() {
    let rest = "ptxas info    : 0 bytes gmem\nptxas info    : Used 160 registers, used 1 barriers\n";
    assert!(check("kernel.log", rest).0.status.success());
    for line in LOG {
        let (output, text) = check("kernel.log", &format!("{rest}{line}\n{rest}"));
        assert!(output.status.code() == Some(1) && text.contains(line), "{text}");
    }
}

#[test]
fn check_cuda_reports_hazards_and_changed_products() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sm_90a");
    std::fs::create_dir(&folder).unwrap();
    let early = KERNEL.replace("UMOV UR16, UR18", "FADD R3, R88, R3");
    std::fs::write(folder.join("flash.sass"), dump(&early)).unwrap();
    std::fs::write(folder.join("flash.log"), LOG[0]).unwrap();
    let (output, text) = run("check_cuda.py", &[dir.path().to_str().unwrap(), "no", "sm_90a"]);
    let all = ["flash.cu (sm_90a): ptxas info    : (C7519)", "kernel (sm_90a): 0x30 FADD R3, R88, R3: reads sums"];
    assert!(!output.status.success() && all.iter().all(|line| text.contains(line)), "{text}");
}
