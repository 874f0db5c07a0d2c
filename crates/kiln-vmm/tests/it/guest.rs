//! A guest of sixty-four bytes: it greets on the serial port and then ends itself or waits for its power button.

use kiln_core::arch::Arch;
use kiln_core::machine::Network;
use kiln_core::size::ByteSize;
use kiln_core::variant::MachineShape;
use kiln_vmm::{AcceleratorChoice, Boot, ChannelName, Mac, MachineSpec, MemoryBacking};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What the guest does after its greeting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum After {
    /// Waits for the power button of the board `pc`, then powers off.
    WaitForButton,
    /// Counts in its memory, with the letters a to p in turn on the console, until the button is pressed.
    Count,
    /// Ends by a triple fault, as a kernel with `reboot=t` does.
    Reset,
}

const BASE: u32 = 0x0100_0000;
const CODE_OFFSET: usize = 0x200;
const TEXT_OFFSET: usize = 0x100;
const IMAGE_BYTES: usize = 0x8000;

/// ```text
///     mov  esi, BASE + 0x100
/// 1:  lodsb; test al,al; jz 2f; mov dx,0x3f8; out dx,al; jmp 1b
/// 2:  lodsb; test al,al; jz 3f
///     lidt [BASE + IMAGE_BYTES - 16]; int3          an empty table: a triple fault
/// 3:  mov dx,0x602; mov ax,0x100; out dx,ax         enable the power button
/// 4:  mov dx,0x600; in ax,dx; test ah,1; jz 4b      until it is pressed
///     mov dx,0x604; mov ax,0x2000; out dx,ax        soft off
/// 5:  hlt; jmp 5b
/// ```
const CODE: [u8; 64] = [
    0xbe, 0x00, 0x01, 0x00, 0x01, 0xac, 0x84, 0xc0, 0x74, 0x07, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4,
    0xac, 0x84, 0xc0, 0x74, 0x08, 0x0f, 0x01, 0x1d, 0xf0, 0x7f, 0x00, 0x01, 0xcc, 0x66, 0xba, 0x02, 0x06,
    0x66, 0xb8, 0x00, 0x01, 0x66, 0xef, 0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf5,
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4, 0xeb, 0xfd,
];

/// ```text
///     mov  esi, BASE + 0x100
/// 1:  lodsb; test al,al; jz 2f; mov dx,0x3f8; out dx,al; jmp 1b
/// 2:  mov dx,0x602; mov ax,0x100; out dx,ax         enable the power button
///     mov edi, BASE + 0x7000
/// 3:  mov dx,0x600; in ax,dx; test ah,1; jnz 4f     until it is pressed
///     inc dword [edi]; mov eax,[edi]                count in memory
///     test eax,0xfff; jnz 3b
///     shr eax,12; and al,15; add al,'a'             a letter every 4096, a to p
///     mov dx,0x3f8; out dx,al; jmp 3b
/// 4:  mov dx,0x604; mov ax,0x2000; out dx,ax        soft off
/// 5:  hlt; jmp 5b
/// ```
const COUNTING_CODE: [u8; 81] = [
    0xbe, 0x00, 0x01, 0x00, 0x01, 0xac, 0x84, 0xc0, 0x74, 0x07, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4,
    0x66, 0xba, 0x02, 0x06, 0x66, 0xb8, 0x00, 0x01, 0x66, 0xef, 0xbf, 0x00, 0x70, 0x00, 0x01, 0x66, 0xba,
    0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x75, 0x19, 0xff, 0x07, 0x8b, 0x07, 0xa9, 0xff, 0x0f, 0x00,
    0x00, 0x75, 0xea, 0xc1, 0xe8, 0x0c, 0x24, 0x0f, 0x04, 0x61, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xdc,
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4, 0xeb, 0xfd,
];

/// Returns a 32-bit ELF file with a PVH entry that greets with `text`.
fn elf(after: After, text: &str) -> Vec<u8> {
    const HEADER: u32 = 52;
    const PROGRAM_HEADER: u32 = 32;
    const NOTE_OFFSET: u32 = HEADER + 2 * PROGRAM_HEADER;
    const NOTE_BYTES: u32 = 20;
    let mut out = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |out: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    let word = |out: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    half(&mut out, &[2, 3]);
    word(&mut out, &[1, BASE, HEADER, 0, 0]);
    half(&mut out, &[52, 32, 2, 40, 0, 0]);
    let (offset, bytes) = (u32::try_from(CODE_OFFSET).unwrap(), u32::try_from(IMAGE_BYTES).unwrap());
    word(&mut out, &[1, offset, BASE, BASE, bytes, bytes, 7, 4]);
    word(&mut out, &[4, NOTE_OFFSET, 0, 0, NOTE_BYTES, NOTE_BYTES, 4, 4]);
    // XEN_ELFNOTE_PHYS32_ENTRY, owner "Xen".
    word(&mut out, &[4, 4, 18]);
    out.extend(b"Xen\0");
    word(&mut out, &[BASE]);
    out.resize(CODE_OFFSET, 0);
    out.extend(if matches!(after, After::Count) { COUNTING_CODE.as_slice() } else { CODE.as_slice() });
    out.resize(CODE_OFFSET + TEXT_OFFSET, 0);
    out.extend(text.as_bytes());
    out.extend([0, u8::from(matches!(after, After::Reset))]);
    assert!(out.len() < CODE_OFFSET + IMAGE_BYTES - 16);
    out.resize(CODE_OFFSET + IMAGE_BYTES, 0);
    out
}

/// Writes a guest's kernel into `dir`, under a name that is hard on careless option syntax.
pub(crate) fn write(dir: &Path, after: After, text: &str) -> PathBuf {
    let path = dir.join(r#"a "kernel",with=all é"#);
    let file = kiln_sys::fs::create_new(&path).unwrap();
    file.write_all_at(&elf(after, text), 0).unwrap();
    path
}

/// Returns a small machine with that kernel and nothing else.
pub(crate) fn spec(kernel: &Path) -> MachineSpec {
    MachineSpec {
        shape: MachineShape { memory: ByteSize::from_mib(64), ..MachineShape::default() },
        arch: Arch::X86_64,
        boot: Boot::elf(kernel),
        disks: Vec::new(),
        network: Network::None,
        mac: Mac::local([0, 0, 1]),
        accelerator: AcceleratorChoice::Auto,
        channel: ChannelName::default(),
        memory: MemoryBacking::Anonymous,
        unplugged_nic: false,
        restore: None,
    }
}
