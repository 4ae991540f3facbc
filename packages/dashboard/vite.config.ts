import { defineConfig } from "vite";

// The built files are committed inside the Python package: the server runs on machines without Node.
const built = "../state-tracking-api/src/state_tracking_api/http/dashboard/static";

export default defineConfig({
  base: "/dashboard/",
  publicDir: false,
  build: {
    outDir: built,
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    // Nothing as a data: address; the page's policy allows files of its own only.
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    rolldownOptions: {
      output: {
        entryFileNames: "assets/[name]-[hash].js",
        chunkFileNames: "assets/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
});
