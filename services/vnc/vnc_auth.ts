import { createCipheriv, timingSafeEqual } from 'node:crypto';

/** A longer password gives no more: the scheme takes eight bytes (RFB community spec §7.2.2) */
export const VNC_PASSWORD_BYTES = 8;

/**
 * The answer to a 16-byte challenge: DES in ECB mode, the password as the key with each byte's bits reversed.
 * Weak by design of the protocol: eight bytes, no identity, no encryption. Never the only guard beyond loopback.
 */
export function vncResponse(password: string, challenge: Uint8Array): Uint8Array {
  const key = Buffer.alloc(VNC_PASSWORD_BYTES);
  key.write(password, 'latin1');
  for (let i = 0; i < key.length; i++) key[i] = reverseBits(key[i]!);
  // Triple DES with one key three times is single DES, which OpenSSL 3 hides in its legacy provider
  const cipher = createCipheriv('des-ede3-ecb', Buffer.concat([key, key, key]), null);
  cipher.setAutoPadding(false);
  return Buffer.concat([cipher.update(challenge), cipher.final()]);
}

/** Constant time. An empty password never matches. */
export function checkVncResponse(password: string, challenge: Uint8Array, response: Uint8Array): boolean {
  const expected = vncResponse(password, challenge);
  return expected.length === response.length && timingSafeEqual(expected, response) && password.length > 0;
}

function reverseBits(byte: number): number {
  let out = 0;
  for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) out |= 0x80 >> bit;
  return out;
}
