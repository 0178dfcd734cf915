/** Longest path of a UNIX socket, in `bytes`: sun_path of Linux without its NUL */
export const MAX_SOCKET_PATH_BYTES = 107;
