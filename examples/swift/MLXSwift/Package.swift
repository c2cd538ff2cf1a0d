// swift-tools-version: 5.9
import PackageDescription

// The graph through mlx-swift, which brings its own MLX: no libconvnextv2, only its resizing. See ../README.md.
let package = Package(
    name: "MLXClassifier",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [.library(name: "ExportedModel", targets: ["ExportedModel"])],
    targets: [
        .target(
            name: "CConvNeXtV2Image",
            sources: ["cpp/src/prepare.cpp", "cpp/src/image_c.cpp"],
            cxxSettings: [.headerSearchPath("cpp/include"), .headerSearchPath("cpp/src")]),
        .target(name: "ExportedModel", dependencies: ["CConvNeXtV2Image"]),
        .testTarget(name: "ExportedModelTests", dependencies: ["ExportedModel"]),
    ],
    cxxLanguageStandard: .cxx20
)

#if os(macOS)
// This release holds MLX 0.32.2, which graphs have to be exported with: MLXClassifier.mlxVersion.
package.dependencies.append(.package(url: "https://github.com/ml-explore/mlx-swift", exact: "0.32.3"))
package.products.append(.library(name: "MLXClassifier", targets: ["MLXClassifier"]))
package.targets += [
    .target(name: "MLXClassifier", dependencies: ["ExportedModel", .product(name: "MLX", package: "mlx-swift")]),
    .executableTarget(name: "classify", dependencies: ["MLXClassifier"]),
]
#endif
